"""Evicting one layer by kvpolicy and by kvpress, each in an environment of its own.

python -m benchmarks.beside_kvpress --python .venv-kvpress/bin/python
"""

import subprocess
import sys


def test_importing_loads_no_triton():
    script = "import sys, kvpolicy_kernels; assert 'triton' not in sys.modules"
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)

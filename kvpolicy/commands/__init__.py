"""The commands of `kvpolicy`, a module for each."""

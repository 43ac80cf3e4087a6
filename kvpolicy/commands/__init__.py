"""The commands of `kvpolicy`, one module each."""

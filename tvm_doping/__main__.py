"""`python -m tvm_doping`: the command line."""

from tvm_doping.cli import main

if __name__ == "__main__":
    main()

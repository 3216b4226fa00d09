"""tvm_doping: compile doped LSTMs (structured + sparse weights) with Apache TVM."""

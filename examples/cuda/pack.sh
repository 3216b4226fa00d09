#!/bin/sh
# pack.sh KIT [--quick] [--target cuda-sm90]: what a machine with a GPU, Python 3.12 and PyTorch needs to measure, and with a C++
# compiler to tune, in files of 50 MB at most. Needs nvcc, and the network for the wheels.
set -eu
kit=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
mkdir -p "$kit/wheels"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$kit/wheels" "$here/../.."
download() {
  "$python" -m pip download --quiet --only-binary :all: --python-version 3.12 --implementation cp --dest "$kit/wheels" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux_2_17_x86_64 "$@"
}
download --no-deps apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1 nvidia-cuda-runtime==13.0.96
download 'numpy>=2,<3' 'pydantic>=2.7,<3' safetensors typing-extensions
# what tuning needs beside: compiling, nvcc, and the search's cost model
download --no-deps nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-cccl==13.0.85
download --no-deps scipy xgboost-cpu==3.2.0 ml-dtypes psutil pyyaml
"$python" -m tvm_doping.bench.cuda prepare "$kit" "$@"
find "$kit" -type f -size +50M ! -name '*.part-*' | while read -r whole; do
  split -b 50M "$whole" "$whole.part-"
  rm "$whole"
done
cp "$here/measure.sh" "$kit/measure.sh"

#!/bin/sh
# An arm64 root for qemu-aarch64: Python and the C library from Debian's arm64 packages, and the wheels that a bundle needs.
#   root.sh FOLDER PYTHON     PYTHON: one with pip; its settings (an index of your own) are honoured, and so are this Debian's sources
# Takes no privileges, and leaves this system's package lists and architectures alone.
set -eu
root=$1 python=$2
here=$(cd "$(dirname "$0")" && pwd)
[ ! -e "$root/.complete" ] || [ "$here/root.sh" -nt "$root/.complete" ] || [ "$here/../../constraints.txt" -nt "$root/.complete" ] || exit 0

rm -rf "$root" "$root.new" "$root.apt"
mkdir -p "$root.new" "$root.apt/lists/partial" "$root.apt/cache/archives/partial"
trap 'rm -rf "$root.apt" "$root.new"' EXIT
apt=$(cd "$root.apt" && pwd)
: > "$apt/status" # nothing is installed: whatever is asked for comes with all that it depends on
arm() {
  apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists="$apt/lists" \
    -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" "$@"
}
echo "arm64 root: Debian's packages"
arm update > "$apt/log" 2>&1 || true # a source without arm64 is no matter, the next command says what is missing
arm install -y --no-install-recommends --download-only libpython3-stdlib python3-minimal libstdc++6 >> "$apt/log" 2>&1 || {
  tail -n 20 "$apt/log"
  echo "no arm64 packages from this system's sources: Debian has them, other systems may not"
  exit 1
}
for deb in "$apt"/cache/archives/*.deb; do dpkg -x "$deb" "$root.new"; done

version=$(ls "$root.new"/usr/bin/python3.* | sed 's/.*python//' | sort -V | tail -n 1)
echo "arm64 root: wheels for Python $version"
"$python" -m pip --disable-pip-version-check install -q --no-deps --no-compile --target "$root.new/site" -c "$here/../../constraints.txt" \
  --only-binary=:all: --implementation cp --python-version "$version" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
  apache-tvm apache-tvm-ffi numpy scipy safetensors pydantic pydantic-core annotated-types typing-extensions typing-inspection \
  ml-dtypes psutil cloudpickle
rm -f "$root.new"/site/tvm/lib/libtvm_compiler.so "$root.new"/site/tvm/lib/libtvm_runtime_cuda.so # large, and no test runs them
echo "$version" > "$root.new/.complete"
mv "$root.new" "$root"

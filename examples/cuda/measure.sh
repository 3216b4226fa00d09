#!/bin/sh
# measure.sh OUT [--quick] [--tune 9] [--minutes 9] [--seconds 2]: sets up what lies beside it, without the network, tunes the kit it is
# part of (records in OUT/records), checks it against PyTorch and measures it into OUT/cuda-*.json. Given again it goes on where it
# stopped; --tune 0 does not tune.
set -eu
kit=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
[ $# -gt 0 ] && [ "${1#-}" = "$1" ] || {
  echo "measure.sh OUT [--quick] [--tune 9] [--minutes 9] [--seconds 2]" >&2
  exit 2
}
out=$1
shift
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || {
  echo "measure.sh: needs Python 3.12, which the kit's wheels are for; $python is not one. PYTHON=python3.12 $0 ..." >&2
  exit 2
}
find "$kit" -name '*.part-aa' | while read -r first; do
  whole=${first%.part-aa}
  [ -f "$whole" ] || { cat "$whole".part-* > "$whole.new" && mv "$whole.new" "$whole"; }
done
if [ ! -d "$kit/site" ]; then
  "$python" -m pip --version > /dev/null 2>&1 || {
    echo "measure.sh: needs pip to unpack the kit's wheels; $python has none (Debian: python3-pip)" >&2
    exit 2
  }
  # of a try that was stopped
  rm -rf "$kit/site.new"
  # PyTorch's own NumPy stays, where it has one
  "$python" -c 'import numpy' 2>/dev/null && skip='numpy-*' || skip=''
  find "$kit/wheels" -name '*.whl' ! -name "$skip" -exec \
    "$python" -m pip install --quiet --no-compile --no-index --no-deps --target "$kit/site.new" {} + || {
    rm -rf "$kit/site.new"
    exit 2
  }
  mv "$kit/site.new" "$kit/site"
fi
PYTHONPATH="$kit/site${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m tvm_doping.bench.cuda measure "$kit" --out "$out" "$@"

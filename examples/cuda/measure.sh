#!/bin/sh
# measure.sh OUT [--quick] [--tune 9] [--minutes 9] [--seconds 2]: sets up what lies beside it, without the network, tunes the kit it is
# part of (records in OUT/records), checks it against PyTorch and measures it into OUT/cuda-*.json. Given again it goes on where it
# stopped; --tune 0 does not tune.
set -eu
kit=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
python=${PYTHON:-python3}
find "$kit" -name '*.part-aa' | while read -r first; do
  whole=${first%.part-aa}
  [ -f "$whole" ] || { cat "$whole".part-* > "$whole.new" && mv "$whole.new" "$whole"; }
done
if [ ! -d "$kit/site" ]; then
  # PyTorch's own NumPy stays, where it has one
  "$python" -c 'import numpy' 2>/dev/null && skip='numpy-*' || skip=''
  find "$kit/wheels" -name '*.whl' ! -name "$skip" -exec \
    "$python" -m pip install --quiet --no-index --no-deps --target "$kit/site.new" {} +
  mv "$kit/site.new" "$kit/site"
fi
PYTHONPATH="$kit/site${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m tvm_doping.bench.cuda measure "$kit" --out "$out" "$@"

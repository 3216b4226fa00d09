"""Hourly weather of three stations, from files that the package pvlib carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tvm_doping.errors import DataError
from tvm_doping.models.tasks.series import Series, chosen_series, parted

# What each column is called in TMY3 and in TMY2, and what TMY2's numbers are to be multiplied by.
_COLUMNS = {
    "temperature": ("Dry-bulb (C)", "DryBulb", 0.1),
    "dew_point": ("Dew-point (C)", "DewPoint", 0.1),
    "humidity": ("RHum (%)", "RHum", 1.0),
    "pressure": ("Pressure (mbar)", "Pressure", 1.0),
    "clouds": ("TotCld (tenths)", "TotCld", 1.0),
    "sun": ("GHI (W/m^2)", "GHI", 1.0),
    "wind_speed": ("Wspd (m/s)", "Wspd", 0.1),
    "wind_from": ("Wdir (degrees)", "Wdir", 1.0),
}
_FILES = {"703165TY.csv": "TMY3", "723170TYA.CSV": "TMY3", "12839.tm2": "TMY2"}
_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_HOURS = 24 * sum(_MONTHS)
_SMOOTHED = 6  # hours at either end of a month
_VALID, _TEST = 20, 25  # days of a month after which these splits begin


def weather(**chosen: Any) -> Series:
    """A typical year of 8,760 hours each of Sand Point (Alaska), Greensboro (North Carolina), both TMY3, and Miami (TMY2):
    temperature and dew point (C), humidity (%), pressure (mbar), clouds (tenths), sun (W/m2), wind (m/s) to the east and to the
    north, and the hour and the day of the year as sine and cosine.

    The months of a typical year come from different years, so each is a piece: to train on up to the 20th day, the next five
    days to validate, the rest to test. Left out are the hours at either end that TMY smooths towards the neighbouring month.

    chosen: columns, target, window, horizon, season of the recipe. Raises DataError where pvlib is not installed or has other
    files.
    """
    try:
        import pvlib
        from pvlib.iotools import read_tmy2, read_tmy3
    except ImportError:
        remedy = "Install it: pip install 'tvm-doping[train]'."
        raise DataError("data.kind pvlib", "the package pvlib", "none installed", remedy) from None
    pieces = []
    names: tuple[str, ...] = ()
    for file, form in _FILES.items():
        path = Path(pvlib.__file__).parent / "data" / file
        try:
            table, _ = read_tmy2(path) if form == "TMY2" else read_tmy3(path, map_variables=False)
            names, rows = _hourly(table, form)
        except (OSError, KeyError, ValueError) as error:
            got = f"{type(error).__name__}: {str(error)[:200]}"
            remedy = "Install another version of pvlib."
            raise DataError(str(path), "a year by the hour, as in pvlib 0.16", got, remedy) from error
        pieces += _months(rows)
    return chosen_series(names, parted(pieces, chosen["window"]), **chosen)


def _hourly(table: Any, form: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and rows (8760, columns) float32 of a table, the first row being that of the hour that ends at 1 a.m."""
    if form == "TMY2":
        found = {name: table[tmy2].to_numpy(float) * unit for name, (_, tmy2, unit) in _COLUMNS.items()}
    else:
        found = {name: table[tmy3].to_numpy(float) for name, (tmy3, _, _) in _COLUMNS.items()}
    if len(table) != _HOURS:
        raise ValueError(f"{len(table)} hours, not {_HOURS}")
    speed, direction = found.pop("wind_speed"), np.deg2rad(found.pop("wind_from"))
    found |= {"wind_east": -speed * np.sin(direction), "wind_north": -speed * np.cos(direction)}
    for name, hours in (("hour", 24), ("year", _HOURS)):
        angle = 2 * np.pi * np.arange(1, _HOURS + 1) / hours
        found |= {f"{name}_sine": np.sin(angle), f"{name}_cosine": np.cos(angle)}
    return tuple(found), np.stack(list(found.values()), 1).astype(np.float32)


def _months(rows: np.ndarray) -> list[tuple[np.ndarray, int, int]]:
    """The rows of each month, and those at which its validation and its test split begin."""
    ends = 24 * np.cumsum(_MONTHS)
    cuts = (24 * _VALID - _SMOOTHED, 24 * _TEST - _SMOOTHED)
    return [
        (rows[end - 24 * days + _SMOOTHED : end - _SMOOTHED], *cuts)
        for days, end in zip(_MONTHS, ends, strict=True)
    ]

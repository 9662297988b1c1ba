"""The demo's patients: 569 breast masses, dealt out to three made-up hospitals of unequal size.

Rules: the split depends on SEED and the patients' ids alone (through SHA-256), so it is the same on every machine and
under every version of Python. Nobody is in two hospitals.

Source and licence (CC BY 4.0) stand in data/README.md. This module fits nothing and starts nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
from importlib.resources import files
from pathlib import Path

from ptm.demo.logistic import Model

SEED = "ptm-demo-1"
SHARES = {"northside": 0.5, "riverside": 0.3, "lakeside": 0.2}
"""Hospital to its share of the patients; the last takes what rounding leaves."""
MODEL = Model(
    outcome="malignant",
    covariates=("texture_worst", "smoothness_worst", "compactness_worst", "symmetry_worst"),
)
LABELS = {
    "texture_worst": "Texture",
    "smoothness_worst": "Smoothness",
    "compactness_worst": "Compactness",
    "symmetry_worst": "Symmetry",
}
"""What a person calls a covariate, in tables and plots."""


def load() -> list[dict[str, str]]:
    """All patients, in file order; values are text, as the file has them."""
    text = files("ptm.demo").joinpath("data/wdbc.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def split(rows: list[dict[str, str]], seed: str = SEED) -> dict[str, list[dict[str, str]]]:
    """Each hospital's patients. The same rows and seed give the same split, whatever the rows' order."""
    dealt = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row['id']}".encode()).digest())
    hospitals: dict[str, list[dict[str, str]]] = {}
    start = 0
    for name, share in SHARES.items():
        end = len(dealt) if len(hospitals) == len(SHARES) - 1 else start + round(share * len(dealt))
        hospitals[name] = dealt[start:end]
        start = end
    return hospitals


def write_hospitals(folder: Path) -> dict[str, Path]:
    """Write `<hospital>.csv` for each hospital into the existing `folder`; hospital to file."""
    written = {}
    for name, rows in split(load()).items():
        written[name] = folder / f"{name}.csv"
        with written[name].open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    return written

"""Record what a source's own code gives for a small checkpoint of its family.

    python scripts/record_fingerprints.py fairseq small/model.pt

The checkpoint gives options and shapes of tensors; their values follow from a seed. Its family's
code must be installed. The result goes to `vanilla_transformer/conversion/fingerprints.json`, which
conversions are checked against where that code is missing. Small means d_model 16, two layers a
side, some twenty tokens.
"""

import argparse
import json
from pathlib import Path

import vanilla_transformer.conversion
from vanilla_transformer.atomic_file import atomic_file
from vanilla_transformer.conversion import FAMILIES
from vanilla_transformer.conversion.fingerprints import FINGERPRINTS, record_fingerprint


def main() -> None:
    """Parses the arguments, records, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=[family.name for family in FAMILIES])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    family = next(family for family in FAMILIES if family.name == arguments.family)
    like = family.read(arguments.checkpoint)
    name = family.reference(like).name
    entry = record_fingerprint(family, like, name, arguments.seed)
    path = Path(vanilla_transformer.conversion.__path__[0]) / FINGERPRINTS
    entries = json.loads(path.read_text("utf-8")) if path.exists() else {}
    entries[family.name] = entry
    with atomic_file(path) as temporary:
        # One line a family: numbers are read by nobody.
        lines = [f"{json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries)]
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    print(f"{path}: {family.name}, by {entry['reference']}")


if __name__ == "__main__":
    main()

"""Training captions of the lab's scenes with their facts: `python -m plaudit.builds.captions 400 > captions.jsonl`."""

from __future__ import annotations

import json
import sys

from plaudit.lab.scenes.grammar import evaluation_prompts


def main() -> None:
    for prompt in evaluation_prompts("train", int(sys.argv[1])):
        print(json.dumps({"id": prompt.id, "text": prompt.text, "facts": dict(prompt.facts)}))


if __name__ == "__main__":
    main()

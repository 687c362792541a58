#!/usr/bin/env python3
"""Judges texts by PyPI's jsonschema: {"schema": ..., "texts": [...]} a line on standard input.

Prints each text that is not JSON or that its schema rejects, and the number of texts; the exit code is 1 when there are any.
By hand: build/release/bin/constraint_tests --gtest_filter='RandomSchemas*' names the file that it wrote.
"""
import json
import sys

import jsonschema


def main():
    bad = count = 0
    for line in sys.stdin:
        case = json.loads(line)
        jsonschema.Draft202012Validator.check_schema(case["schema"])
        validator = jsonschema.Draft202012Validator(
            case["schema"], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        for text in case["texts"]:
            count += 1
            try:
                validator.validate(json.loads(text))
            except (json.JSONDecodeError, jsonschema.ValidationError) as error:
                bad += 1
                print(f"REJECTED {text!r}\n  by {json.dumps(case['schema'])}\n  {str(error).splitlines()[0]}")
    print(f"{count} texts, {bad} rejected")
    return 1 if bad or not count else 0


if __name__ == "__main__":
    sys.exit(main())

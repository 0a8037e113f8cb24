#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `--ttt auto` gains for its joules, beside fixed tiers and schedules that learn from each n-th segment; and texts that nobody writes.

    bench/ttt_auto.py THERMOE MODEL OUT.json TEXT... -- TIER...      TIER: a name, or a TOML file (bench/tiers)

Texts are cut as by bench/ttt.py. Joules are predicted from bytes and FLOPs where no sensor shows power ("estimated"). With the tier
"adversarial" `--ttt auto` reads random words, one word again and again, and a text whose language changes halfway, each 16 times.
Adds to OUT.json, so that a run that was stopped goes on.
"""
import os, random, tempfile

from ttt import evaluate, run_tiers, text_row


def row_of(run):
    keys = ("tiers", "adapt_joules", "adapt_joules_estimated", "adapt_seconds", "reverted")
    return {"texts": [{**text_row(file), "stream_changes_nats": file["stream_changes_nats"], **{key: file[key] for key in keys},
                       "guard_passes": file.get("guard_passes", 0)} for file in run["files"]]}


def adversarial(folder, texts):
    rng = random.Random(1)
    words = sorted({word for text in texts for word in open(text, encoding="utf-8", errors="ignore").read()[:200000].split()})
    first, other = (open(text, encoding="utf-8", errors="ignore").read() for text in (texts[0], texts[-1]))
    pages = {"random_words": [" ".join(rng.choices(words, k=1800)) for _ in range(16)],
             "one_word": [(" " + rng.choice(words)) * 2400 for _ in range(16)],
             "change_of_language": [first[i * 9000:i * 9000 + 4600] + other[i * 9000:i * 9000 + 5200] for i in range(16)]}
    paths = []
    for name, documents in pages.items():
        paths.append(os.path.join(folder, name + ".txt"))
        with open(paths[-1], "w") as out: out.write("\0".join(document.replace("\0", " ") for document in documents))
    return paths


def run_of(thermoe, model, texts, tier, name):
    if name != "adversarial": return evaluate(thermoe, model, texts, tier)
    with tempfile.TemporaryDirectory() as folder:
        return evaluate(thermoe, model, adversarial(folder, texts), "auto")


if __name__ == "__main__":
    run_tiers(run_of, row_of, (("all", "change"), ("odd", "odd_change"), ("worst", "worst"), ("J", "adapt_joules")))

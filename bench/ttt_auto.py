#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `--ttt auto` gains for its joules, beside fixed tiers and schedules that learn from each n-th segment; and texts that nobody writes.

    bench/ttt_auto.py THERMOE MODEL OUT.json TEXT... -- TIER...      TIER: a name, or a TOML file (bench/tiers)

Texts are cut as by bench/ttt.py. Joules are predicted from bytes and FLOPs where no sensor shows power ("estimated"). With the tier
"adversarial" `--ttt auto` reads random words, one word again and again, and a text whose language changes halfway, each 16 times.
Adds to OUT.json, so that a run that was stopped goes on.
"""
import json, os, random, subprocess, sys, tempfile


def mean(values): return sum(values) / len(values)


def evaluate(thermoe, model, texts, tier, sample):
    command = [thermoe, "eval", model, *texts, "--window", "2304", "--sample", str(sample), "--ttt", tier, "--threads", "1", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def row_of(tier, commit, run):
    row = {"tier": tier, "commit": commit, "engine": run["engine"], "texts": []}
    for file in run["files"]:
        changes = file["stream_changes_nats"]
        row["texts"].append({"text": os.path.splitext(os.path.basename(file["file"]))[0], "plain_nll": file["plain_nll"],
                             "adapted_nll": file["adapted_nll"], "change": mean(changes), "even_change": mean(changes[0::2]),
                             "odd_change": mean(changes[1::2]), "worst": max(changes), "stream_changes_nats": changes,
                             **{key: file[key] for key in ("tiers", "adapt_joules", "adapt_joules_estimated", "adapt_seconds", "reverted",
                                                           "passes_per_token")},
                             "guard_passes": file.get("guard_passes", 0)})
    return row


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


def main():
    split = sys.argv.index("--")
    thermoe, model, out, *texts = sys.argv[1:split]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = json.load(open(out)) if os.path.exists(out) else {"schema_version": 1, "rows": []}
    done = {row["tier"] for row in results["rows"]}
    for tier in sys.argv[split + 1:]:
        name = os.path.splitext(os.path.basename(tier))[0]
        if name in done: continue
        if name == "adversarial":
            with tempfile.TemporaryDirectory() as folder:
                run = evaluate(thermoe, model, adversarial(folder, texts), "auto", 16)
        else:
            run = evaluate(thermoe, model, texts, tier, 16)
        row = row_of(name, commit, run)
        results["rows"].append(row)
        json.dump(results, open(out, "w"), indent=1)
        show = lambda key: "/".join(f"{text[key]:+.4f}" for text in row["texts"])
        print(f"{name:16s} all {show('change')} odd {show('odd_change')} worst {show('worst')} J {show('adapt_joules')}", flush=True)


main()

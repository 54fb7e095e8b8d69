"""Train a model on the shards of a config, then score it zero-shot on the evaluation sets of the same config.

python examples/train_and_evaluate.py wit.toml
"""

import sys

from trainer import load_settings, open_encoder, run_training, write_results, zero_shot

settings = load_settings(sys.argv[1])

model = run_training(settings)  # goes on from the last checkpoint
if model is None:
    sys.exit("stopped; run the same command to go on")

encoder = open_encoder(model, config=settings.evaluate)
for evaluation in settings.evals:
    result = zero_shot(encoder, evaluation)
    chance = "unknown" if result.chance is None else f"{result.chance:.1%}"
    print(f"{result.name}: {result.metric} {result.value:.1%} (chance {chance}), {result.examples:,} examples")
    print(write_results(settings.workspace, encoder.name, result))  # `wit report` splits it into clean and overlap

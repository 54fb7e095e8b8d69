"""Per-example results of a model on an evaluation set: what `wit evaluate` writes and the report reads.

They lie in `evals/<set>/results/<model>.parquet`. The metadata key `wit` of what `wit evaluate` writes is a JSON
object with the model's name; files made by other programs only need the columns `REQUIRED`.
"""

import pyarrow as pa

REQUIRED = pa.schema(
    [
        ("eval_id", pa.string()),  # as in evals/<set>/index.parquet, each once
        ("correct", pa.bool_()),
    ]
)

RESULTS = pa.schema(
    [
        REQUIRED.field("eval_id"),
        ("label", pa.string()),  # the class's first name; of several classes, the one that scored highest
        ("prediction", pa.string()),
        REQUIRED.field("correct"),
        ("score", pa.float32()),  # the softmax probability of the prediction
        ("label_rank", pa.int32()),  # how many classes scored higher than the label's: 0 when correct
    ]
)


def results_folder(name: str) -> str:
    """Return the folder of a set's results, relative to the workspace."""
    return f"evals/{name}/results"

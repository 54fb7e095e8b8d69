"""Sources: files of candidates, an image URL and a text that may describe the image.

Each file is read as a stream of Arrow batches, in file order, in bounded memory; every row that is not a candidate is
counted with its reason.
"""

from pipeline.paths import expand_paths, file_versions
from pipeline.sources.batch import CANDIDATES, SourceBatch
from pipeline.sources.read import read_source

__all__ = ["CANDIDATES", "SourceBatch", "expand_paths", "file_versions", "read_source"]

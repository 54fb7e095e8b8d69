"""shards/croissant.json: a machine-readable description of the set, in Croissant 1.1 (mlcommons.org/croissant) with its
RAI vocabulary.

Each file beside it has its SHA-256. PROV-O says which activity made the set from what. The
same set gives the same file, so it has no date.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.config.fetch import FetchConfig
from pipeline.config.table import public_path
from pipeline.stages.compliance import Compliance, request_rates, signals_read
from pipeline.stages.data_card import stored_form

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "prov": "http://www.w3.org/ns/prov#",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_TEXT, _INTEGER = "sc:Text", "sc:Integer"
# Columns of the tables: name, type, meaning, is it a list.
_FIELDS = (
    ("uid", _TEXT, "identifies the pair; the name of its files in the tar", False),
    ("url", "sc:URL", "the address of the image", False),
    ("caption", _TEXT, "the text of the pair", False),
    ("captions", _TEXT, "that text, then those of duplicates of the image", True),
    ("text_field", _TEXT, "where the text stood: caption, alt, title or figcaption", False),
    ("page_url", _TEXT, "the page that showed the image, empty where it is not known", False),
    ("source", _TEXT, "the file in which the pair was found", False),
    ("captured_at", "sc:DateTime", "when the page was crawled, empty where it is not known", False),
    ("source_offset", _INTEGER, "where in that file the page's record, or the image, starts", False),
    ("language", _TEXT, "ISO 639 code of the text, und where it is not sure", False),
    ("status", _TEXT, "success for pairs in the set, else why not, with reason", False),
    ("reason", _TEXT, "why a pair is not in the set", False),
    ("refused_by", _TEXT, "the signal by which its owner, or a block list, said no", False),
    ("consent_said", _TEXT, "what was said about the use of the image", False),
    ("rights", _TEXT, "the copyright notice in the image file", False),
    ("creator", _TEXT, "the creator named in the image file", False),
    ("license_url", _TEXT, "the licence named in the image file", False),
    ("width", _INTEGER, "of the stored image", False),
    ("height", _INTEGER, "of the stored image", False),
    ("sha256", _TEXT, "of the image file as downloaded", False),
)


def croissant(config: Config, manifest: Mapping[str, Any], compliance: Compliance) -> dict[str, Any]:
    """Return the JSON-LD document for a finished set."""
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": "wit-pipeline-set",
        "description": f"{manifest['samples']:,} image-text pairs from the web in WebDataset shards, balanced so that "
        f"no query selects more than {config.balance.cap:,} pairs.",
        "license": "https://spdx.org/licenses/NONE.html",
        "version": "1.0.0",
        "citeAs": f"A set built with wit-pipeline {manifest['code_version']}, seed {config.seed}.",
        "isLiveDataset": False,
        **_responsible_ai(config, compliance),
        "prov:wasGeneratedBy": _provenance(config, manifest),
        "distribution": _distribution(manifest, config.fetch.format),
        "recordSet": [_record_set()],
    }


_IMAGES_OF: Mapping[str, Mapping[str, Any]] = {
    "jpg": {"encodingFormat": "image/jpeg", "includes": "*.jpg"},
    "webp": {"encodingFormat": "image/webp", "includes": "*.webp"},
    "png": {"encodingFormat": "image/png", "includes": "*.png"},
}
_SUFFIXES = ("jpg", "png", "webp", "gif", "bmp", "tif", "avif", "ppm")
_ANY_IMAGES: Mapping[str, Any] = {"encodingFormat": "image/*", "includes": [f"*.{suffix}" for suffix in _SUFFIXES]}


def _processing(fetch: FetchConfig) -> str:
    """Return what was done with an image before it was stored."""
    if fetch.format == "original":
        return "None: the files are stored as they were served."
    if fetch.resize == "shorter_side" and fetch.format == "jpg":
        return f"Shrunk to a shorter side of {fetch.image_size} px, made upright, encoded as JPEG without metadata."
    return f"Made upright, and stored without metadata: {stored_form(fetch)}."


def _personal_information(fetch: FetchConfig) -> str:
    if fetch.format == "original":
        return "Images may show people. The files may hold GPS positions and names in their metadata."
    return "Images may show people. GPS positions are not kept."


def _responsible_ai(config: Config, found: Compliance) -> dict[str, Any]:
    heeded = [signal for signal, is_read in signals_read(config.fetch).items() if is_read]
    fetch, matches = config.fetch, "removed" if config.dedup.evals == "remove" else "reported"
    evals = ", ".join(evaluation.name for evaluation in config.evals) or "none"
    return {
        "rai:dataCollection": "Links to images with their texts were taken from web pages and tables; each image was "
        f"requested once, by the crawler {fetch.agent}, {request_rates(fetch)}.",
        "rai:dataCollectionType": ["Web Scraping"],
        "rai:dataCollectionRawData": "Web pages and their images.",
        "rai:dataPreprocessingProtocol": [
            _processing(fetch),
            "Exact and near duplicates are one sample.",
            f"Compared with evaluation sets: {evals}; matching pairs are {matches}.",
        ],
        "rai:dataLimitations": "Texts are as their authors wrote them; nothing was filtered for safety, faces or "
        "quality. Rights in the images stay with their owners.",
        "rai:dataUseCases": ["Training of image-text models."],
        "rai:personalSensitiveInformation": [_personal_information(fetch)],
        "rai:dataReleaseMaintenancePlan": "Owners' refusals are applied anew from block lists with each build.",
        "rai:dataAnnotationProtocol": f"Signals of consent that were heeded: {', '.join(heeded)}. Pairs refused: "
        f"{found.refused.total():,}.",
    }


def _provenance(config: Config, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the crawl as an activity of PROV-O."""
    return {
        "@type": "prov:Activity",
        "prov:label": "crawl, balance and deduplication",
        "prov:wasAssociatedWith": {
            "@type": "prov:SoftwareAgent",
            "prov:label": f"wit-pipeline {manifest['code_version']}",
        },
        "prov:used": [
            {"@type": "prov:Entity", "prov:label": f"{source.kind}: {public_path(path)}"}
            for source in config.sources
            for path in source.paths
        ],
    }


def _distribution(manifest: Mapping[str, Any], image_format: str) -> list[dict[str, Any]]:
    tars = [shard["tar"] for shard in manifest["shards"]]
    tables = [tar.removesuffix(".tar") + ".parquet" for tar in tars]
    kinds = {"application/x-tar": tars, "application/x-parquet": tables}
    files = [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "contentUrl": name,
            "contentSize": f"{manifest['files'][name]['bytes']} B",
            "encodingFormat": kind,
            "sha256": manifest["files"][name]["sha256"],
        }
        for kind, names in kinds.items()
        for name in names
    ]
    return [
        *files,
        {
            "@type": "cr:FileSet",
            "@id": "tables",
            "name": "tables",
            "description": "A row for every planned pair, in the set or not.",
            "encodingFormat": "application/x-parquet",
            "includes": "*.parquet",
        },
        {
            "@type": "cr:FileSet",
            "@id": "images",
            "name": "images",
            "description": "The images of the pairs in the set.",
            "containedIn": [{"@id": name} for name in tars],
            **_IMAGES_OF.get(image_format, _ANY_IMAGES),
        },
    ]


def _record_set() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "pairs",
        "name": "pairs",
        "description": "All planned pairs; those with status success are the set.",
        "key": {"@id": "pairs/uid"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"pairs/{name}",
                "name": name,
                "description": meaning,
                "dataType": data_type,
                **({"repeated": True} if is_list else {}),
                "source": {"fileSet": {"@id": "tables"}, "extract": {"column": name}},
            }
            for name, data_type, meaning, is_list in _FIELDS
        ],
    }

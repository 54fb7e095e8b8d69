"""Zero-shot, retrieval and probe on generated scenes, with a model whose answers are known, and any checkpoint."""

import io
import json
import os
import signal
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.processes import TINY, tiny_settings
from support.scene_shards import COLOURS, draw_scene, scene_of, write_scene_shards
from support.shared_data import SHARED
from timm.data.imagenet_info import ImageNetInfo

from dedup.eval_sets import known_sets
from dedup.eval_sets.config import EvalSetConfig
from dedup.eval_sets.read import read_examples
from dedup.eval_sets.results import RESULTS
from trainer.config import EvaluateConfig
from trainer.errors import TrainerConfigError, TrainerError
from trainer.evaluation import linear_probe
from trainer.evaluation.__main__ import main
from trainer.evaluation.examples import encode_set, number_labels
from trainer.evaluation.models import Encoder, open_encoder, without_projection
from trainer.evaluation.prompts import PLAIN_TEMPLATES, Prompts, find_prompts, read_prompts, wordnet_prompts
from trainer.evaluation.retrieval import _best_rank_per_image, _ranks, retrieve
from trainer.evaluation.zero_shot import classifier, write_results, zero_shot
from trainer.shard_cache import ShardCache
from trainer.shards import find_shards
from trainer.train import train


class _ColourModel(torch.nn.Module):
    """Knows colours by name and by the reddest, greenest and bluest pixel; a fourth feature it never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(3.0))
        self.visual = torch.nn.Module()

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float()


def _colour_encoder(batch: int = 4) -> Encoder:
    def preprocess(image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float()
        return torch.nn.functional.interpolate(pixels[None], (8, 8))[0] - pixels.mean()

    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.tensor([COLOURS[next(c for c in COLOURS if c in text)] for text in texts]).float() - 110

    return Encoder("colours", _ColourModel(), preprocess, tokenize, torch.device("cpu"), torch.float32, batch, 2)


def _scene_folder(folder: Path, count: int = 24) -> EvalSetConfig:
    for number in range(count):
        colour, shape = scene_of(number)
        path = folder / colour / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_scene(colour, shape, 1_000 + number))
    return EvalSetConfig(name="scenes", kind="folder", path=str(folder))


def test_zero_shot_scores_every_readable_example_by_its_id(tmp_path: Path):
    source = _scene_folder(tmp_path / "images")
    (tmp_path / "images" / "red" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "images" / "notes.txt").write_text("other")
    result = zero_shot(_colour_encoder(), source, None)
    assert (result.metric, result.examples, result.left_out, result.classes) == ("accuracy", 24, 1, 4)
    assert result.value > 0.7
    rows = result.table.to_pylist()
    known = {example.eval_id: example.label for example in read_examples("folder", source.path)}
    assert {row["eval_id"]: row["label"] for row in rows} == {k: v for k, v in known.items() if v and "broken" not in k}
    assert all(row["correct"] == (row["label"] == row["prediction"]) == (row["label_rank"] == 0) for row in rows)
    assert np.mean([row["correct"] for row in rows]) == pytest.approx(result.value)
    path = write_results(str(tmp_path), "colours", result)
    assert path == str(tmp_path / "evals/scenes/results/colours.parquet")
    assert pq.read_table(path).schema.equals(RESULTS)
    assert [p.name for p in Path(path).parent.iterdir()] == ["colours.parquet"]


def test_batches_and_broken_images_do_not_shift_results(tmp_path: Path):
    source = _scene_folder(tmp_path / "images")
    for name in ("blue/000.jpg", "blue/zzz.jpg", "green/005.jpg"):
        (tmp_path / "images" / name).write_bytes(b"broken")
    tables = [zero_shot(_colour_encoder(batch), source, None).table for batch in (1, 3, 100)]
    assert all(table.drop(["score"]).equals(tables[0].drop(["score"])) for table in tables)


def test_class_vectors_are_normalised_means_of_normalised_texts():
    prompts = Prompts((("red", "green"), ("blue",)), ("a {}", "the {} one"))
    vectors = classifier(_colour_encoder(), prompts)
    unit = {c: torch.nn.functional.normalize(torch.tensor(COLOURS[c]).float() - 110, dim=0) for c in COLOURS}
    expected = torch.nn.functional.normalize((unit["red"] + unit["green"]) / 2, dim=0)
    torch.testing.assert_close(vectors[0], expected)
    torch.testing.assert_close(vectors[1], unit["blue"])


def test_class_vectors_are_those_of_open_clip():
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY["architecture"])  # type: ignore[arg-type]
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=16)
    encoder = Encoder("m", model, lambda i: i, tokenizer, torch.device("cpu"), torch.float32, 7, 0)  # type: ignore
    names, templates = ["cat", "dog", "tree"], ["a photo of a {}.", "a drawing of a {}."]
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    ours = classifier(encoder, Prompts(tuple((n,) for n in names), tuple(templates)))
    torch.testing.assert_close(ours.T, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["1", "0", "1"], [1, 0, 1]),
        (["golden_retriever", "Tabby-Cat"], [0, 1]),
        (["kitten", "tabby cat"], [1, 1]),
        (["GoldenRetriever"], [0]),
        (["n01", "n02"], [0, 1]),
        (["ZA", "AD"], [1, 0]),
    ],
)
def test_labels_are_numbers_names_or_codes_in_order(labels: list[str], expected: list[int]):
    prompts = Prompts((("golden retriever",), ("tabby cat", "kitten")), PLAIN_TEMPLATES)
    _, positive = number_labels("pets", labels, prompts, several=False)
    assert positive.argmax(axis=1).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "first"),
    [
        (range(1, 103), 1),  # Oxford Flowers as it is published: folders 1 to 102
        (range(102), 0),
        ([0, 3, 20, 101], 0),
        ([3, 20], 0),
    ],
)
def test_numbered_classes_are_counted_from_0_or_from_1(labels: Sequence[int], first: int):
    prompts = Prompts(tuple((f"flower {chr(97 + n // 26)}{chr(97 + n % 26)}",) for n in range(102)), PLAIN_TEMPLATES)
    for form in ("{}", "{:05d}"):
        _, positive = number_labels("flowers102", [form.format(n) for n in labels], prompts, several=False)
        assert positive.argmax(axis=1).tolist() == [n - first for n in labels]


def test_numbers_that_are_names_are_names():
    """OpenAI lists the classes of CLEVRCounts as strings in their order: 10 first."""
    names = ["10", "3", "4", "5", "6", "7", "8", "9"]
    prompts = Prompts(tuple((name,) for name in names), PLAIN_TEMPLATES)
    for labels in (names[::-1], ["3", "7"]):
        _, positive = number_labels("clevr-counts", labels, prompts, several=False)
        assert [names[n] for n in positive.argmax(axis=1)] == labels
    with pytest.raises(TrainerError, match="label '0' is not one of the 8 class names"):
        number_labels("clevr-counts", list("01234567"), prompts, several=False)
    with pytest.raises(TrainerError, match="label '-3' is not one of the 8 class names"):
        number_labels("clevr-counts", ["-3", "4"], prompts, several=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "fish"], "label 'fish' is not one of the 3 class names"),
        (
            ["cat", "neko", "inu"],
            "label 'inu' is not one of the 3 class names",
        ),  # the order of words is no order of classes
        (["inu", "neko", "tori"], "label 'inu' is not one of the 3 class names"),
        (["class1", "class2", "class10"], "label 'class1' is not one of the 3 class names"),
        (["n01", "n02"], "label 'n01' is not one of the 3 class names"),
        (["hound"], "label 'hound' is the name of 2 classes"),
        (["1", "2"], "2 numeric labels from 1 to 2 are ambiguous for 3 classes"),  # 0 or 3 does not occur
        (["0", "3"], "2 numeric labels from 0 to 3 are ambiguous for 3 classes"),
        (["1", "3"], "2 numeric labels from 1 to 3 are ambiguous for 3 classes"),
    ],
)
def test_labels_that_fit_no_class_or_several_are_one_line(labels: list[str], message: str):
    prompts = Prompts((("cat",), ("dog", "hound"), ("wolf", "hound")), PLAIN_TEMPLATES)
    with pytest.raises(TrainerError, match=f"evaluation set pets: {message}") as caught:
        number_labels("pets", labels, prompts, several=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["T-shirt", "t shirt", "T - Shirt", " tshirt ", "T_shirt"])
@pytest.mark.parametrize("name", ["T-shirt", "T - shirt", "t_shirt"])
def test_names_may_be_spelt_in_several_ways(label: str, name: str):
    prompts = Prompts(((name,), ("dress",)), PLAIN_TEMPLATES)
    _, positive = number_labels("clothes", ["dress", label], prompts, several=False)
    assert positive.argmax(axis=1).tolist() == [1, 0]


def test_labels_that_are_not_names_need_prompts():
    for name, labels in (("imagenet-a", ["n01443537", "n99999999"]), ("cifar10", ["0", "1"]), ("pets", ["-1"])):
        with pytest.raises(
            TrainerError, match=rf"{name}: label '{labels[0]}' is not a name .* file of evaluate\.prompts"
        ):
            number_labels(name, labels, None, several=False)
    prompts, _ = number_labels("mnist", ["7", "3"], None, several=False)
    assert prompts.classes == (("3",), ("7",))


def test_names_of_classes_like_imagenets_are_in_its_templates():
    """As in the paper's comparison of robustness; of other sets the template is plain."""
    imagenet = find_prompts("imagenet", {})
    assert imagenet is not None
    for name in ("objectnet", "youtube-bb", "imagenet-r", "pets"):
        prompts, positive = number_labels(name, ["alarm_clock", "zebra"], None, several=False)
        assert prompts.classes == (("alarm clock",), ("zebra",))
        assert prompts.origin == "the labels"
        assert prompts.templates == (PLAIN_TEMPLATES if name == "pets" else imagenet.templates)
        assert positive.tolist() == [[True, False], [False, True]]


def test_the_whole_of_objectnet_is_not_the_papers_part():
    names = [f"thing {chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(313)]
    assert len(number_labels("objectnet", names[:113], None, several=False)[0].classes) == 113
    assert len(number_labels("my-objectnet", names, None, several=False)[0].classes) == 313
    with pytest.raises(TrainerError, match="objectnet: its labels are 313 classes, the paper's are the 113") as caught:
        number_labels("objectnet", names, None, several=False)
    assert "\n" not in str(caught.value)


def test_wordnet_ids_have_the_names_of_imagenet_or_of_wordnet():
    prompts, positive = number_labels("imagenet-a", ["n01498041", "n01443537", "n01498041"], None, several=False)
    assert prompts.classes == (("goldfish",), ("stingray",))
    assert positive.argmax(axis=1).tolist() == [1, 0, 1]
    imagenet = find_prompts("imagenet", {})
    assert imagenet is not None
    assert (prompts.templates, prompts.origin) == (imagenet.templates, "the paper's")
    prompts, _ = number_labels("imagenet-vid", ["n02691156", "n01443537"], None, several=False)
    assert prompts.classes == (("goldfish",), ("airplane", "aeroplane", "plane"))
    assert prompts.origin == "WordNet's names"


def test_ids_and_names_of_imagenet_are_in_one_order():
    """CLIP's name of a class is mostly one of WordNet's; with a shift by one almost none would be."""
    info = ImageNetInfo("imagenet-1k")
    prompts = wordnet_prompts(info.label_names())
    assert prompts is not None
    known = [
        name.lower() in info.label_name_to_description(one).lower()
        for one, (name,) in zip(info.label_names(), prompts.classes, strict=True)
    ]
    assert all(sum(known[start : start + 100]) > 50 for start in range(0, 1_000, 100))


def test_prompts_say_where_they_are_from(tmp_path: Path):
    (tmp_path / "prompts.md").write_text("## Pets\n\nclasses = [\n'cat',\n]\n\ntemplates = [\n'a {}.',\n]\n")
    (tmp_path / "own.json").write_text('{"pets": {"classes": ["cat"], "templates": ["a {}."]}}')
    found = [read_prompts(tmp_path / name)["pets"].origin for name in ("prompts.md", "own.json")]
    assert found == ["the paper's", "a file"]
    assert number_labels("pets", ["cat"], None, several=False)[0].origin == "the labels"


def test_an_example_may_have_several_classes():
    prompts, positive = number_labels("voc2007", ["cat, dog", "dog", "bird"], None, several=True)
    assert [names[0] for names in prompts.classes] == ["bird", "cat", "dog"]
    assert positive.tolist() == [[False, True, True], [False, False, True], [True, False, False]]
    assert number_labels("voc2007", ["cat, ,dog,", "cat"], None, several=True)[1].tolist() == [
        [True, True],
        [True, False],
    ]


def test_published_prompts_are_read(tmp_path: Path):
    archive = SHARED / "evals" / "eval_names_and_prompts.tar.gz"
    if not archive.exists():
        pytest.skip("needs the shared data: set WIT_SHARED_DATA")
    with tarfile.open(archive) as tar:
        member = tar.extractfile("eval_openai_clip/data/prompts.md")
        assert member is not None
        (tmp_path / "prompts.md").write_bytes(member.read())
    published = read_prompts(tmp_path / "prompts.md")
    assert len(published) == 26
    known = {known.name for known in known_sets() if find_prompts(known.name, published)}
    others = {"imagenet", "imagenet-v2", "imagenet-sketch", "imagenet-blurry"}
    assert len(known - others) == 26
    for name, classes, templates in [
        ("cifar10", 10, 18),
        ("food101", 101, 1),
        ("birdsnap", 500, 1),
        ("ucf101", 101, 48),
    ]:
        prompts = find_prompts(name, published)
        assert prompts is not None
        assert (len(prompts.classes), len(prompts.templates)) == (classes, templates)
    fer = find_prompts("fer2013", published)
    assert fer is not None
    assert max(len(names) for names in fer.classes) > 1


def test_imagenets_names_and_templates_come_with_open_clip():
    prompts = find_prompts("imagenet", {})
    assert prompts is not None
    assert (len(prompts.classes), len(prompts.templates)) == (1000, 80)
    assert prompts.texts(0)[0] == "a bad photo of a tench."


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '{"a": {"classes": ["x"]}}',
        '{"a": {"classes": ["x"], "templates": ["no"]}}',
        '{"a": {"classes": [["x"], []], "templates": ["{}"]}}',
        '{"a": {"classes": [[1], [2]], "templates": ["{}"]}}',
        '{"a": {"classes": "xy", "templates": ["{}"]}}',
        '{"a": {"classes": ["x"], "templates": [1]}}',
        '{"a": {"classes": ["\\ud800", "x"], "templates": ["{}"]}}',
        "[" * 100_000,
    ],
)
def test_unusable_prompts_are_one_line(tmp_path: Path, content: str):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(TrainerConfigError, match=r"prompts\.json") as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_retrieval_counts_ranks_over_all_captions(scenes: Path, tmp_path: Path):
    """Against loops over the same features."""
    shards = find_shards((f"{scenes}/shards/00001.tar",), ShardCache(tmp_path, 2**30))
    torch.manual_seed(3)
    model = open_clip.CLIP(**TINY["architecture"]).eval()  # type: ignore[arg-type]
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=16)
    preprocess = open_clip.image_transform(32, is_train=False)
    encoder = Encoder("m", model, preprocess, tokenizer, torch.device("cpu"), torch.float32, 5, 0)
    result = retrieve(encoder, shards)
    assert (result.images, result.captions) == (13, 39)
    reader = shards.reader(0)
    samples = [reader.read(number, with_json=True) for number in range(13)]
    captions = [json.loads(sample.json or b"{}")["captions"] for sample in samples]
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(io.BytesIO(s.image or b""))) for s in samples])
        image = model.encode_image(pixels, normalize=True)
        text = model.encode_text(tokenizer([c for own in captions for c in own]), normalize=True)
    scores = (image @ text.T).numpy()
    text_order, image_order = np.argsort(-scores, axis=1, kind="stable"), np.argsort(-scores, axis=0, kind="stable")
    for k in (1, 5, 10):
        assert result.text_recall[k] == pytest.approx(np.mean([i in text_order[i, :k] // 3 for i in range(13)]))
        assert result.image_recall[k] == pytest.approx(np.mean([j // 3 in image_order[:k, j] for j in range(39)]))


def test_a_model_to_which_all_is_the_same_retrieves_by_chance():
    features, answers = torch.full((20, 4), 0.5), np.repeat(np.arange(10), 2)  # 10 images of two captions
    images = features[:10]
    assert _ranks(features, images, answers).tolist() == answers.tolist()
    assert _best_rank_per_image(images, features, answers).tolist() == list(range(0, 20, 2))


@pytest.mark.parametrize(
    ("metadata", "captions"),
    [(b"[1]", 1), (b"{", 1), (b'{"captions": [1, 2]}', 1), (b'{"captions": "abc"}', 1), (b'{"captions": {"a": 1}}', 1),
     (b'{"captions": 5}', 1), (b'{"captions": ["a red one", " ", 3, "the red one"]}', 2)],
)  # fmt: skip
def test_captions_of_any_json_are_text_or_the_txt(tmp_path: Path, metadata: bytes, captions: int):
    write_scene_shards(tmp_path / "shards", (1,), {"json": {0: metadata}})
    shards = find_shards((f"{tmp_path}/shards/*.tar",), ShardCache(tmp_path / "cache", 2**30))
    result = retrieve(_colour_encoder(), shards)
    assert (result.images, result.captions) == (1, captions)


@pytest.mark.parametrize("classes", [("red cat",), ("red cat", "red dog", "red cow")])
def test_roc_auc_needs_two_classes(tmp_path: Path, classes: tuple[str, ...]):
    for name in classes:
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.jpg").write_bytes(draw_scene("red", "circle", 0))
    source = EvalSetConfig(name="hateful-memes", kind="folder", path=str(tmp_path / "images"))
    prompts = Prompts(tuple((name,) for name in classes), PLAIN_TEMPLATES)
    with pytest.raises(TrainerError, match=f"hateful-memes: ROC AUC needs .* two classes; {len(classes)} of"):
        zero_shot(_colour_encoder(), source, prompts)
    two = Prompts((("red cat",), ("green dog",)), PLAIN_TEMPLATES)
    if len(classes) == 1:
        with pytest.raises(TrainerError, match="two classes; 1 of 2"):
            zero_shot(_colour_encoder(), source, two)


def test_examples_of_one_name_are_told_apart(tmp_path: Path):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for key, label in (("k", b"red"), ("j", b"blue"), ("k", b"green")):
            for suffix, content in (("jpg", draw_scene("red", "circle", 0)), ("cls", label)):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    source = EvalSetConfig(name="pets", kind="webdataset", path=str(tmp_path / "set.tar"))
    encoded = encode_set(_colour_encoder(), source)
    assert list(zip(encoded.eval_ids, encoded.labels, strict=True)) == [
        ("set/k", "red"), ("set/j", "blue"), ("set/k#2", "green"),
    ]  # fmt: skip


def _sixteen_bit_png(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((20, 20), colour, np.uint16)).save(stream, "PNG")
    return stream.getvalue()


def test_evaluation_images_are_decoded_as_the_trainings_are():
    stream = io.BytesIO()
    Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(stream, "TIFF")
    avif = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50, 3), np.uint8)).save(avif, "AVIF")
    start = avif.getvalue().index(b"mdat") + 4
    damaged = avif.getvalue()[:start] + bytes(2_000)
    ppm = b"P6 2 2 255\n" + bytes([100] * 12)
    encoder = replace(_colour_encoder(), preprocess=lambda image: torch.tensor(np.asarray(image.convert("RGB"))[0, 0]))
    images = [_sixteen_bit_png(0x4000), stream.getvalue(), damaged, ppm]
    assert [None if pixels is None else pixels.tolist() for pixels in map(encoder._pixels, images)] == [
        [64] * 3, None, None, [100] * 3
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """End the fits of a probe early: with little regularisation they take all of their 1,000 iterations."""
    monkeypatch.setattr(linear_probe, "MAX_ITERATIONS", 30)


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    train(tiny_settings(scenes, output, steps=2))
    return output


def test_every_form_of_a_checkpoint_gives_the_same_features(trained: Path, tmp_path: Path):
    """A training checkpoint, the exported folder, and a plain state dict with an architecture's name."""
    config = EvaluateConfig(device="cpu")
    picture = [draw_scene("red", "square", 5)]
    step = open_encoder(str(trained / "checkpoints" / "step-000000002.pt"), None, None, config)
    exported = open_encoder(str(trained / "model"), None, None, config)
    assert step.name == f"{trained.name}-step-000000002"
    first, second = (next(encoder.encode_images(picture))[0] for encoder in (step, exported))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{trained / 'model'}")
    theirs = model.eval().encode_image(preprocess(Image.open(io.BytesIO(picture[0])))[None])
    torch.testing.assert_close(first, theirs.detach(), rtol=1e-5, atol=1e-5)
    tokens = open_clip.get_tokenizer("ViT-B-32", context_length=16)("a red square")
    texts = model.encode_text(tokens, normalize=True).detach()
    torch.testing.assert_close(step.encode_texts(["a red square"]), texts, rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    small, _, _ = open_clip.create_model_and_transforms("ViT-S-32-alt")
    torch.save(small.state_dict(), tmp_path / "small.pt")
    opened = open_encoder(str(tmp_path / "small.pt"), "ViT-S-32-alt", None, config)
    assert opened.name == "ViT-S-32-alt-small"
    assert all(
        torch.equal(a, b) for a, b in zip(opened.model.state_dict().values(), small.state_dict().values(), strict=True)
    )


def test_the_probe_sees_what_the_projection_gets(trained: Path):
    encoder = open_encoder(str(trained / "model"), None, None, EvaluateConfig(device="cpu"))
    picture = [draw_scene("red", "square", 5)]
    projected = next(encoder.encode_images(picture))[0]
    with without_projection(encoder.model):
        raw = next(encoder.encode_images(picture))[0]
    torch.testing.assert_close(raw @ encoder.model.visual.proj.detach(), projected)


def _config(workspace: Path, source: EvalSetConfig, extra: str = "") -> Path:
    path = workspace / "wit.toml"
    text = f'workspace = "."\n[train]\nmodel = "tiny"\n[evaluate]\ndevice = "cpu"\n{extra}\n'
    path.write_text(f'{text}[[evals]]\nname = "{source.name}"\nkind = "{source.kind}"\npath = "{source.path}"\n')
    return path


def test_the_command_writes_results_and_prints_chance(
    trained: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = _scene_folder(tmp_path / "images")
    config = _config(tmp_path, source, f'probe_train = {{ scenes = "{source.path}" }}')
    arguments = ["-c", str(config), "--checkpoint", str(trained / "model"), "--name", "run"]
    assert main([*arguments, "--retrieval", f"{scenes}/shards/00001.tar"]) == 0
    printed = capsys.readouterr().out
    assert "25.0%" in printed
    assert "R@5" in printed
    assert (tmp_path / "evals/scenes/results/run.parquet").exists()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"--checkpoint": "missing.pt"}, 1, "checkpoint missing.pt does not exist"),
        ({"--checkpoint": "nowhere"}, 1, "it does not exist; for a tag of open_clip add its architecture"),
        ({"--model": "ViT-B-32"}, 1, "/model as ViT-B-32: Pretrained value"),
        ({"--sets": "other"}, 2, "no such set in [[evals]], which has scenes"),
        ({"-c": "missing.toml"}, 2, "cannot read missing.toml"),
    ],
)
def test_mistakes_are_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], code: int, message: str
):
    config = _config(tmp_path, EvalSetConfig(name="scenes", kind="folder", path=str(tmp_path / "none")))
    flags: dict[str, Any] = {"-c": str(config), "--checkpoint": str(trained / "model"), **change}
    assert main([part for flag in flags.items() for part in flag]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_runs_folder_is_no_checkpoint_but_has_some(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = _config(tmp_path, EvalSetConfig(name="scenes", kind="folder", path=str(tmp_path / "none")))
    saved = trained / "checkpoints" / "step-000000002.pt"
    for given, instead in ((trained, trained / "model"), (trained / "checkpoints", saved)):
        assert main(["-c", str(config), "--checkpoint", str(given)]) == 1
        assert capsys.readouterr().err.endswith(f"nor an exported model: give {instead}\n")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('probe_train = { scene = "there" }', "evaluate.probe_train.scene: no such set in [[evals]], which has scenes"),
        (
            '[[evals]]\nname = "scenes"\nkind = "folder"\npath = "there"',
            "two [[evals]] have the name 'scenes': rename one",
        ),
    ],
)
def test_duplicate_or_unknown_set_names_fail_before_scoring(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: str, message: str
):
    config = _config(tmp_path, _scene_folder(tmp_path / "images", 4), extra)
    assert main(["-c", str(config), "--checkpoint", str(trained / "model")]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("name", "set_name"),
    [
        ("a/b", "scenes"),
        ("../../../esc", "scenes"),
        ("..", "scenes"),
        ("", "scenes"),
        ("run", "x/../../y"),
        ("run", ".."),
    ],
)
def test_results_stay_in_their_folder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, set_name: str
):
    source = _scene_folder(tmp_path / "images", 4).model_copy(update={"name": set_name})
    workspace = tmp_path / "a" / "b"
    workspace.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    config = _config(workspace, source)
    assert main(["-c", str(config), "--checkpoint", str(trained / "model"), "--name", name]) == 2
    error = capsys.readouterr().err
    assert "is not a file name" in error or "evals.0.name" in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == sorted([*before, config])


def _one_line_about(path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["-c", str(config), "--checkpoint", str(path), "--name", "run"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(config.parent.rglob("*.parquet*"))
    return error


def test_weights_that_are_not_finite_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = _config(tmp_path, _scene_folder(tmp_path / "images", 4))
    whole = torch.load(trained / "checkpoints" / "step-000000002.pt", weights_only=True)
    for name, value, message in (
        ("logit_scale", float("nan"), "the weights logit_scale are not finite"),
        ("visual.proj", float("inf"), "the weights visual.proj are not finite"),
        ("visual.ln_post.weight", 3e38, "the features of run are not finite"),
    ):
        weights = dict(whole["model"])
        weights[name] = torch.full_like(weights[name], value)
        torch.save({**whole, "model": weights}, tmp_path / "other.pt")
        assert message in _one_line_about(tmp_path / "other.pt", config, capsys)


@pytest.mark.parametrize("damage", ["identity", "model", "architecture", "logit_scale", "shape"])
def test_a_checkpoint_that_lacks_something_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
):
    config = _config(tmp_path, _scene_folder(tmp_path / "images", 4))
    content = torch.load(trained / "checkpoints" / "step-000000002.pt", weights_only=True)
    if damage == "architecture":
        content["identity"]["train.architecture"] = {}
    elif damage == "shape":
        content["model"]["ln_final.weight"] = torch.zeros(3)
    else:
        del (content["model"] if damage == "logit_scale" else content)[damage]
    torch.save(content, tmp_path / "other.pt")
    assert "other.pt" in _one_line_about(tmp_path / "other.pt", config, capsys)


def test_a_probe_of_one_example_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = _scene_folder(tmp_path / "one", 1)
    config = _config(tmp_path, _scene_folder(tmp_path / "images", 4), f'probe_train = {{ scenes = "{one.path}" }}')
    assert main(["-c", str(config), "--checkpoint", str(trained / "model")]) == 1
    error = capsys.readouterr().err
    assert "evaluate.probe_train.scenes: a probe needs two or more examples" in error
    assert error.count("\n") == 1


def test_a_probe_is_scored_by_the_metric_of_its_set(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of 16 red and 2 blue pictures that look the same, a model that always says red has 88.9 %, and 50 % by class."""
    for number in range(18):
        path = tmp_path / "images" / ("red" if number < 16 else "blue") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_scene("green", "circle", 0))
    source = EvalSetConfig(name="oxford-pets", kind="folder", path=str(tmp_path / "images"))
    config = _config(tmp_path, source, f'probe_train = {{ oxford-pets = "{source.path}" }}')
    assert main(["-c", str(config), "--checkpoint", str(trained / "model")]) == 0
    printed = capsys.readouterr().out
    assert "88.9%" not in printed
    assert printed.count("50.0%") == 3  # zero-shot, chance, probe


def _parquet_set(path: Path, name: str, labels: Sequence[Any]) -> EvalSetConfig:
    pictures = [draw_scene(*scene_of(number), 1_000 + number) for number in range(len(labels))]
    pq.write_table(pa.table({"image": pictures, "label": list(labels)}), path)
    return EvalSetConfig(name=name, kind="parquet", path=str(path))


def test_a_probe_of_pictures_with_several_classes_is_scored_by_mean_precision(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = _parquet_set(tmp_path / "voc.parquet", "voc2007", [",".join(scene_of(number)) for number in range(24)])
    config = _config(tmp_path, source, f'probe_train = {{ voc2007 = "{source.path}" }}')
    assert main(["-c", str(config), "--checkpoint", str(trained / "model")]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "voc2007" in line and "11-point" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[3] == ""  # no chance is known
    assert 50 < float(cells[4].rstrip("%")) <= 100


def test_any_of_several_classes_is_right(tmp_path: Path):
    colours = [scene_of(number)[0] for number in range(4)]  # each colour once, and pictures follow in this order
    pairs = [f"{colours[number]},{colours[number - 1]}" for number in range(4)]
    labels = [*pairs, *pairs, *pairs[2:], *pairs[:2]]
    source = _parquet_set(tmp_path / "voc.parquet", "voc2007", labels)
    result = zero_shot(_colour_encoder(), source, None)
    rows = result.table.to_pylist()
    right = [row["prediction"] in label.split(",") for row, label in zip(rows, labels, strict=True)]
    assert 0 < sum(right) < len(right)
    assert [row["correct"] for row in rows] == right == [row["label_rank"] == 0 for row in rows]
    assert all(row["label"] == row["prediction"] for row in rows if row["correct"])
    assert result.accuracy == pytest.approx(np.mean(right))


def test_frames_of_videos_are_said_to_be_frames(tmp_path: Path):
    source = _scene_folder(tmp_path / "images", 4).model_copy(update={"name": "youtube-bb"})
    result = zero_shot(_colour_encoder(), source, None)
    assert result.metric == "accuracy (frames)"
    path = write_results(str(tmp_path), "m", result)
    assert json.loads(pq.read_schema(path).metadata[b"wit"])["metric"] == "accuracy (frames)"


def test_sets_before_one_that_fails_are_printed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = _config(tmp_path, _scene_folder(tmp_path / "images"))
    text = config.read_text()
    config.write_text(f'{text}[[evals]]\nname = "gone"\nkind = "folder"\npath = "{tmp_path / "none"}"\n')
    assert main(["-c", str(config), "--checkpoint", str(trained / "model"), "--name", "run"]) == 1
    printed = capsys.readouterr()
    assert "scenes" in printed.out
    assert str(tmp_path / "evals/scenes/results/run.parquet") in printed.out.replace("\n", "")
    assert printed.err.startswith("error: evaluation set gone")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("moment", ["encoding", "writing"])
def test_sigterm_ends_an_evaluation_without_half_results(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, moment: str
):
    """The signal comes while images are encoded, or when half of the results are written."""
    config = _config(tmp_path, _scene_folder(tmp_path / "images", 4))

    def terminated(*arguments: Any) -> None:
        if moment == "writing":
            arguments[1].write(b"half")
            arguments[1].flush()
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1)

    place = "trainer.evaluation.examples._Reader.take" if moment == "encoding" else "pyarrow.parquet.write_table"
    monkeypatch.setattr(place, terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["-c", str(config), "--checkpoint", str(trained / "model")]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.startswith("stopped")
    assert [path for path in (tmp_path / "evals").rglob("*") if path.is_file()] == []


def test_results_that_cannot_be_written_are_one_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = _config(tmp_path, _scene_folder(tmp_path / "images", 4))
    (tmp_path / "evals").write_text("in the way")
    assert "cannot write" in _one_line_about(trained / "model", config, capsys)


def test_a_missing_set_is_one_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = _config(tmp_path, EvalSetConfig(name="scenes", kind="folder", path=str(tmp_path / "none")))
    assert main(["-c", str(config), "--checkpoint", str(trained / "model")]) == 1
    assert "evaluation set scenes" in capsys.readouterr().err

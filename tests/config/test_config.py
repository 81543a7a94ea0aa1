"""What a user can get wrong in a configuration, and that a valid one is read back unchanged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vgg_ddp.config import Config, dump, load, with_absolute_path, with_absolute_paths
from vgg_ddp.config.describe import describe_keys
from vgg_ddp.config.reading import all_keys
from vgg_ddp.errors import UserError

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted((REPOSITORY / "configs").glob("*.yaml"))

# A value for each key that is not its default and breaks no rule.
OTHER_VALUES: dict[str, Any] = {
    "network": "C",
    "loader": "torch",
    "batch": 30,
    "accumulation": 4,
    "fit_memory": True,
    "memory_share": 0.5,
    "epochs": 2.5,
    "min_steps": 10,
    "min_steps_per_epoch": 20,
    "precision": "fp16",
    "channels_last": False,
    "device": "cpu",
    "nproc": 3,
    "ranks_per_gpu": 2,
    "threads": 2,
    "numa": "none",
    "seed": 2**32 - 1,
    "resume": "auto",
    "compile": "auto",
    "restarts": 0,
    "timeout": 12.5,
    "recompute": "stages",
    "determinism": "run",
    "profile": 4,
    "ema": 0.999,
    "lookahead": 5,
    "model.batch_norm": False,
    "model.head": "paper",
    "model.activation": "gelu",
    "model.pool_before_norm": True,
    "model.norm_scale": False,
    "model.norm_momentum": 0.4,
    "model.logit_scale": 0.125,
    "model.whiten": True,
    "model.initialization": "glorot",
    "model.initialize_from": "/weights/vgg16.pth",
    "model.initialize_layers": "paper",
    "model.dropout": 0.25,
    "model.sync_batch_norm": True,
    "model.fused": False,
    "data.source": "some where/images",
    "data.fallback": "digits",
    "data.directory": "/data",
    "data.unreadable": "drop",
    "data.unusual": "refuse",
    "data.test_share": 0.3,
    "data.split_seed": 7,
    "data.resize": 48,
    "data.photo_size": 64,
    "data.image_size": 24,
    "data.normalisation": "imagenet",
    "data.train_sizes": [16, 24],
    "data.validation": 0.25,
    "data.train_share": 0.5,
    "data.balance_classes": True,
    "data.resident_share": 0.5,
    "data.residency": "sharded",
    "data.workers": 0,
    "data.decode_threads": 3,
    "data.prefetch": 5,
    "augment.crop_padding": 4,
    "augment.flip": True,
    "augment.rotation": 12.5,
    "augment.scale_jitter": [256, 512],
    "augment.random_resized_crop": [0.08, 1.0],
    "augment.brightness": 0.4,
    "augment.contrast": 0.3,
    "augment.saturation": 0.2,
    "augment.hue": 0.1,
    "augment.colour_shift": 0.1,
    "augment.cutout": 8,
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "augment.strong_epochs": [4, 8],
    "augment.randaugment": 9,
    "augment.randaugment_operations": 3,
    "optimizer.name": "adamw",
    "optimizer.implementation": "torch",
    "optimizer.rate_batch": 512,
    "optimizer.learning_rate": 1e-5,
    "optimizer.features_rate": 0.1,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.95,
    "optimizer.epsilon": 1e-6,
    "optimizer.trust_coefficient": 0.01,
    "optimizer.bias_rate": 64.0,
    "optimizer.momentum": 0.5,
    "optimizer.muon_rate": 0.1,
    "optimizer.muon_momentum": 0.9,
    "optimizer.muon_fixed_norm": False,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 1e-20,
    "optimizer.decay_biases_and_norms": True,
    "optimizer.clip_norm": 1.5,
    "schedule.name": "one_cycle",
    "schedule.warmup_epochs": 0.5,
    "schedule.milestones": [1.0, 2.5],
    "schedule.gamma": 0.3,
    "schedule.patience": 2,
    "schedule.min_delta": 0.01,
    "schedule.reductions": 2,
    "schedule.peak_at": 0.1,
    "schedule.first": 0.001,
    "schedule.final": 0.01,
    "loss.label_smoothing": 0.1,
    "loss.class_weights": [0.5, 2.0],
    "loss.hardest": 0.5,
    "loss.hardest_size": 16,
    "optimizer.sharpness_radius": 0.1,
    "loss.on_nonfinite": "skip",
    "loss.implementation": "torch",
    "communication.compression": "powersgd",
    "communication.powersgd_rank": 4,
    "communication.powersgd_warmup_steps": 10,
    "communication.bucket_mb": "auto",
    "communication.synchronise_every": 8,
    "communication.outer_learning_rate": 0.7,
    "communication.outer_momentum": 0.9,
    "communication.split_head": "host",
    "engine": "deepspeed",
    "deepspeed.stage": 3,
    "deepspeed.config": "more.json",
    "stop.patience": 3,
    "stop.min_delta": 0.001,
    "checkpoint.every_epochs": 5,
    "checkpoint.every_steps": 100,
    "checkpoint.keep": 5,
    "checkpoint.on_error": "continue",
    "evaluate.batch": 7,
    "evaluate.every_epochs": 2,
    "evaluate.checkpoint": "best",
    "evaluate.protocol": "dense+multicrop",
    "evaluate.scales": [256, 384],
    "evaluate.flips": True,
    "evaluate.views": 0.6,
    "analysis.groups": {"pets": ["cat", "007"], "no": ["no"]},
    "analysis.budget": "small",
    "analysis.attributes": "/data/attributes.csv",
    "analysis.human_labels": "/data/people.npy",
    "run.dir": "runs/ü x",
    "log.every_steps": 3,
    "log.gradient_norm": True,
    "log.answers": False,
    "tracking.wandb": "offline",
    "tracking.tensorboard": True,
    "tracking.project": "other",
    "tracking.entity": "team",
    "tracking.group": "sizes",
    "tracking.name": "first",
    "tracking.tags": ["a", "b"],
    "tracking.artifacts": True,
    "tracking.mistakes": 0,
    "tracking.finish_seconds": 0.5,
}
NEEDED = {  # what each of these keys requires
    "accumulation": {"batch": 32},
    "communication.outer_learning_rate": {"communication.synchronise_every": 2},
    "communication.outer_momentum": {"communication.synchronise_every": 2},
    "communication.split_head": {"model.head": "paper"},
    "augment.strong_epochs": {"augment.cutout": 8},
    "lookahead": {"ema": 0.5},
    "evaluate.views": {"evaluate.protocol": "shifted"},
    "loss.hardest_size": {"loss.hardest": 0.5},
    "model.initialize_layers": {"model.initialize_from": "runs/A"},
}


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping, with their full keys."""
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key not in all_keys():
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def every_key() -> dict[str, Any]:
    return dict(leaves(yaml.safe_load(dump(Config()))))


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """An empty file: all defaults."""
    path = tmp_path / "config.yaml"
    path.write_text("")
    return path


def refusal(path: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, words)
    message = str(caught.value)
    assert "\n" not in message
    return message


def words_of(values: dict[str, Any]) -> list[str]:
    return [f"{k}={yaml.safe_dump(v, default_flow_style=True).splitlines()[0]}" for k, v in values.items()]


def test_no_key_was_forgotten_in_this_file() -> None:
    assert OTHER_VALUES.keys() == every_key().keys()


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_each_key_can_be_set_by_a_word_and_by_the_file(key: str, config_file: Path) -> None:
    value = OTHER_VALUES[key]
    needed = NEEDED.get(key, {})
    by_word = load(config_file, words_of({key: value, **needed}))
    tree: dict[str, Any] = {}
    for full, its_value in {key: value, **needed}.items():
        place = tree
        *groups, name = full.split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = its_value
    config_file.write_text(yaml.safe_dump(tree))
    assert load(config_file) == by_word
    found = dict(leaves(yaml.safe_load(dump(by_word))))
    defaults = every_key()
    changed = {k for k, v in found.items() if v != defaults[k]}
    assert changed - needed.keys() == {key}
    assert found[key] == value


def test_aliases_of_few_values_are_taken(config_file: Path) -> None:
    config_file.write_text("data: {train_sizes: &sizes [64, 96]}\nevaluate: {protocol: dense, scales: *sizes}")
    config = load(config_file, ["data.image_size=32"])
    assert config.data.train_sizes == config.evaluate.scales == [64, 96]


def test_a_configuration_of_many_classes_is_read_back(config_file: Path) -> None:
    """`balanced` stands for weights computed from the data set, one for each class."""
    config = load(config_file, ["loss.class_weights=balanced"])
    config_file.write_text(dump(config))
    assert load(config_file).loss.class_weights == "balanced"


def test_groups_of_classes_are_named_one_by_one_or_all_at_once(config_file: Path) -> None:
    whole = load(config_file, ["analysis.groups={pets: [cat, 1], birds: [owl]}"])
    assert whole.analysis.groups == {"pets": ["cat", "1"], "birds": ["owl"]}
    assert load(config_file, ["analysis.groups.pets=[cat, 1]", "analysis.groups.birds=[owl]"]) == whole
    assert "names the class 'cat' twice" in refusal(config_file, "analysis.groups={a: [cat], b: [cat, dog]}")
    assert "'a' names no class" in refusal(config_file, "analysis.groups={a: []}")
    assert "expected array" in refusal(config_file, "analysis.groups={a: cat}")
    assert "expected object" in refusal(config_file, "analysis.groups=cat")
    assert "analysis.groups.no has no keys of its own; a name with a dot" in refusal(
        config_file, "analysis.groups.no.1=[a]"
    )


def test_dump_and_load_of_every_key_at_once(config_file: Path) -> None:
    clashes = {
        "batch": 32,
        "model.head": "compact",
        "model.batch_norm": True,
        "model.pool_before_norm": False,  # these are incompatible with initialize_from
        "model.whiten": False,
        "augment.random_resized_crop": None,  # incompatible with scale_jitter
        "communication.synchronise_every": 1,
        "communication.outer_learning_rate": 1.0,
        "communication.outer_momentum": 0.0,
        "communication.split_head": "none",
        "loss.on_nonfinite": "stop",  # these two are incompatible with the communication keys
        "log.gradient_norm": False,
        "optimizer.sharpness_radius": 0.0,  # so are these
        "loss.hardest": 1.0,
        "loss.hardest_size": None,
        "engine": "ddp",
        "precision": "bf16",
        "compile": False,
        "model.sync_batch_norm": False,
    }
    config = load(config_file, words_of({**OTHER_VALUES, **clashes}))
    config_file.write_text(dump(config))
    assert load(config_file) == config


printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"]), min_size=1)


@pytest.mark.seconds
@settings(max_examples=20)  # each dumps and loads every key
@given(
    directory=printable.filter(lambda name: name[0] not in "~$"),
    rate=st.floats(0, exclude_min=True, allow_infinity=False),
    decay=st.floats(0, 1e300),
)
@example(directory="1e3", rate=1e-5, decay=0.0)
@example(directory="12e04", rate=0.1, decay=0.0)
@example(directory="2026-11-23", rate=1e22, decay=1e22)
@example(directory="null", rate=0.1, decay=0.0)
@example(directory="yes", rate=0.1, decay=0.0)
@example(directory="0x10", rate=0.1, decay=0.0)
def test_dump_and_load_give_the_same_configuration(
    tmp_path_factory: pytest.TempPathFactory, directory: str, rate: float, decay: float
) -> None:
    """A run's config.yaml is read back by evaluate, report and resume: no folder name may change it."""
    default = Config()
    config = msgspec.structs.replace(
        default,
        run=msgspec.structs.replace(default.run, dir=directory),
        optimizer=msgspec.structs.replace(default.optimizer, learning_rate=rate, weight_decay=decay),
    )
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(path) == config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipe_of_the_repository_loads(recipe: Path) -> None:
    load(recipe)


def test_there_are_recipes() -> None:
    assert "quickstart.yaml" in [path.name for path in RECIPES]


def test_help_lists_every_key_with_its_default_and_meaning() -> None:
    lines = describe_keys().splitlines()
    for key, value in every_key().items():
        (line,) = [i for i, line in enumerate(lines) if line.startswith(f"  {key}=")]
        shown, _, meaning = lines[line].strip().partition(" ")
        text = shown.partition("=")[2]
        if isinstance(value, list):
            assert text == str(value)
        else:
            assert yaml.safe_load(text) == (yaml.safe_load(str(value)) if value is not None else None)
        assert meaning.strip() or lines[line + 1].strip()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("bacth=32", "batch"),
        ("netwrok=vgg11", "network"),
        ("learning_rate=0.1", "optimizer.learning_rate"),
        ("optimizer.learnig_rate=0.1", "optimizer.learning_rate"),
        ("data.sorce=digits", "data.source"),
        ("model.batchnorm=true", "model.batch_norm"),
        ("momentum=0.9", "optimizer.momentum"),
        ("schedule.warmup=5", "schedule.warmup_epochs"),
        ("checkpoints.keep=5", "checkpoint.keep"),
        ("data.batch=32", "batch"),
        ("lr=0.1", "optimizer.learning_rate"),
        ("optimizer.lr=0.1", "optimizer.learning_rate"),
        ("flip=y", "augment.flip"),
    ],
)
def test_unknown_key_names_the_nearest(wrong: str, right: str, config_file: Path) -> None:
    key, _, value = wrong.partition("=")
    message = refusal(config_file, wrong)
    assert re.search(f"unknown key '({key}|{key.split('.')[0]})'", message)  # the key, or the group if that is wrong
    assert f"did you mean '{right}'?" in message
    assert f"'{wrong}'" in message  # it names the argument
    group, _, name = key.rpartition(".")
    config_file.write_text(f"{group}: {{{name}: {value}}}" if group else f"{name}: {value}")
    message = refusal(config_file)
    assert f"did you mean '{right}'?" in message
    assert str(config_file) in message  # it names the file


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("batch=many", "int"),
        ("batch=1.5", "int"),
        ("batch=", "int"),
        ("batch=[32]", "int"),
        ("batch=0", ">= 1"),
        ("batch=true", "int"),
        ("epochs=ten", "float"),
        ("epochs=0", "> 0"),
        ("model.batch_norm=1", "bool"),
        ("data.image_size=15", ">= 16"),
        ("data.train_sizes=16", "array"),
        ("data.train_sizes=[16, 8]", ">= 16"),
        ("data.validation=1", "< 1"),
        ("ema=1", "< 1"),
        ("seed=-1", ">= 0"),
        ("nproc=0", ">= 1"),
        ("run.dir=", "str"),
        ("seed=0x10", "int"),
        ("epochs=1:30", "float"),
    ],
)
def test_wrong_type_or_range_says_what_is_expected(word: str, expected: str, config_file: Path) -> None:
    message = refusal(config_file, word)
    assert f"'{word.partition('=')[0]}" in message
    assert f"'{word}'" in message
    assert expected in message


@pytest.mark.parametrize(
    "word",
    ["epochs=.nan", "epochs=.inf", "optimizer.learning_rate=.inf", "optimizer.learning_rate=.nan", "epochs=-.inf"],
)
def test_numbers_that_are_none_are_refused(word: str, config_file: Path) -> None:
    assert word.partition("=")[0] in refusal(config_file, word)


@pytest.mark.parametrize(
    ("word", "choices"),
    [
        ("network=vgg12", ["A-LRN", "vgg11", "vgg19"]),
        ("loader=tf", ["auto", "dali", "torch"]),
        ("precision=fp8", ["auto", "fp32", "tf32", "bf16", "fp16"]),
        ("model.head=big", ["compact", "paper"]),
        ("schedule.name=linear", ["constant", "step", "cosine", "one_cycle"]),
        ("resume=yes_please", ["never", "auto"]),
        ("augment.flip=y", ["true", "false", "alternating", "auto"]),
        ("nproc=-1", ["NUMBER", "auto"]),
        ("data.resize=2.5", ["NUMBER", "auto", "null"]),
        ("model.batch_norm=1", ["true", "false"]),
    ],
)
def test_bad_value_lists_the_choices(word: str, choices: list[str], config_file: Path) -> None:
    message = refusal(config_file, word)
    assert f"'{word.partition('=')[0]}'" in message
    assert word in message
    for choice in choices:
        assert choice in message.partition("choose one of")[2]


@pytest.mark.parametrize("word", ["batch", "=3", "", "batch:32", "--batch"])
def test_word_without_key_and_value_is_refused_with_an_example(word: str, config_file: Path) -> None:
    message = refusal(config_file, word)
    assert "key=value" in message
    assert f"'{word}'" in message


@pytest.mark.parametrize("word", ["batch=[", "batch={a", "seed=0x_", "tracking.tags=[a", "tracking.tags=@x"])
def test_word_whose_value_is_not_yaml_is_refused(word: str, config_file: Path) -> None:
    assert word in refusal(config_file, word)


def test_group_is_not_a_value_and_a_value_is_not_a_group(config_file: Path) -> None:
    assert "'data' is a group" in refusal(config_file, "data=digits")
    assert "'batch' is a single key" in refusal(config_file, "batch.size=32")
    config_file.write_text("data: digits")
    assert "'data' is a group" in refusal(config_file)
    config_file.write_text("batch: {size: 32}")
    assert "'batch' is a single key" in refusal(config_file)


def test_missing_file_names_one_of_a_similar_name(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").touch()
    message = refusal(tmp_path / "quikstart.yaml")
    assert f"{tmp_path / 'quikstart.yaml'} does not exist" in message
    assert f"did you mean {tmp_path / 'quickstart.yaml'}?" in message
    assert "does not exist" in refusal(tmp_path / "nowhere" / "else.yaml")


# A hundred thousand copies of one class name: each alias holds ten of the one before.
NESTED_ALIASES = b"analysis:\n groups:\n  a0: &a0 [cat]\n" + b"".join(
    b"  a%d: &a%d [%s]\n" % (k, k, b", ".join([b"*a%d" % (k - 1)] * 10)) for k in range(1, 6)
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"batch: [32", "not valid YAML"),
        (b"batch: 32\n  epochs: 3\n", "not valid YAML"),
        (b"batch: 32\nbatch: 64\n", "'batch' is written twice"),
        (b"data: {source: a, source: b}", "'source' is written twice"),
        (b"a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"- batch\n- 32\n", "key: value"),
        (b"just words", "key: value"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"batch: \x00", "not valid YAML"),
        (b"1: 2", "unknown key '1'"),
        (b"true: 2", "unknown key"),
        (b"a: " + b"[" * 3000, "not valid YAML"),
        (b"analysis: {groups: {a: &a [cat, *a]}}", "aliases stand for too many values"),
        (NESTED_ALIASES, "aliases stand for too many values"),
        (b"\n".join(b"key%d: 1" % number for number in range(20_000)), "more than 100,000 letters"),
    ],
)
def test_file_that_is_no_configuration_is_refused(content: bytes, expected: str, config_file: Path) -> None:
    config_file.write_bytes(content)
    message = refusal(config_file)
    assert expected in message
    assert str(config_file) in message


@pytest.mark.parametrize(
    ("key", "name", "expected"),
    [
        ("run.dir", "a\nb", "it has a control character"),
        ("data.source", "a\0b", "it has a control character"),
        ("run.dir", "x" * 300, "File name too long"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(key: str, name: str, expected: str, config_file: Path) -> None:
    group, _, own = key.partition(".")
    config_file.write_text(yaml.safe_dump({group: {own: name}}))
    assert f" is no path: {expected}; choose another name" in refusal(config_file)


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", ".001", "+1e-3", "10e-4", "1e-03"])
def test_a_number_is_a_number_however_it_is_written(text: str, config_file: Path) -> None:
    assert load(config_file, [f"optimizer.learning_rate={text}"]).optimizer.learning_rate == 0.001
    config_file.write_text(f"optimizer: {{learning_rate: {text}}}")
    assert load(config_file).optimizer.learning_rate == 0.001


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        *(
            ("run.dir", text, text)
            for text in ("exp #2", "20261125", "2024-13-45", "1e5", "a: b", "@x", "[1", "null", "yes")
        ),
        ("run.dir", "'a b'", "a b"),
        ("run.dir", "~/x", str(Path.home() / "x")),
        ("run.dir", "~", str(Path.home())),
        ("data.source", "$HOME/images", f"{os.environ['HOME']}/images"),
        ("data.source", "a$HOME", "a$HOME"),
        ("tracking.group", "123456", "123456"),
        ("tracking.group", "null", None),
        ("tracking.tags", "[a, 1]", ["a", "1"]),
        ("seed", "010", 10),
        ("batch", "1e3", 1000),
        ("batch", "1_024", 1024),
        ("compile", "yes", True),
        ("data.resize", "null", None),
        ("data.resize", "48", 48),
        ("deepspeed.stage", "2", 2),
    ],
)
def test_a_word_is_read_as_its_key_s_type_has_it(key: str, text: str, value: Any, config_file: Path) -> None:
    assert dict(leaves(msgspec.to_builtins(load(config_file, [f"{key}={text}"]))))[key] == value


def test_and_so_is_a_file(config_file: Path) -> None:
    config_file.write_text("seed: 010\nrun: {dir: 20261125}\ntracking: {name: 1:30, tags: [1, no], group: ~}")
    config = load(config_file)
    assert (config.seed, config.run.dir, config.tracking.name) == (10, "20261125", "1:30")
    assert (config.tracking.tags, config.tracking.group) == (["1", "no"], None)


def test_a_word_switches_off_what_a_recipe_adapts_to_the_data(config_file: Path) -> None:
    config_file.write_text("min_steps_per_epoch: 40\ndata: {photo_size: 64}\noptimizer: {rate_batch: 256}")
    adapted = load(config_file, ["seed=1", "data.resize=72"])
    assert (adapted.min_steps_per_epoch, adapted.data.photo_size) == (40, 64)
    for words in (["data.image_size=128"], ["data.image_size=48"], ["data.resize=36"]):
        assert load(config_file, words).data.photo_size is None
    assert load(config_file, ["batch=16"]).min_steps_per_epoch == 0
    assert load(config_file, ["batch=16"]).optimizer.rate_batch == 256
    assert load(config_file, ["batch=16", "optimizer.learning_rate=0.1"]).optimizer.rate_batch is None
    both = load(config_file, ["batch=16", "min_steps_per_epoch=5", "data.image_size=48", "data.photo_size=96"])
    assert (both.min_steps_per_epoch, both.data.photo_size) == (5, 96)


def test_empty_groups_and_files_are_the_defaults(config_file: Path) -> None:
    assert load(config_file) == Config()
    config_file.write_text("data:\nmodel: {}\n")
    assert load(config_file) == Config()


def test_words_win_over_the_file_and_later_words_over_earlier(config_file: Path) -> None:
    config_file.write_text("batch: 64\ndata: {source: digits, workers: 3}")
    config = load(config_file, ["batch=32", "data.workers=2", "batch=16"])
    assert (config.batch, config.data.source, config.data.workers) == (16, "digits", 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.resize=31"], ["data.resize", "data.image_size"]),
        (["model.head=paper", "data.image_size=31"], ["model.head=paper", "32"]),
        (["model.head=paper", "data.train_sizes=[64]"], ["data.train_sizes", "model.head=compact"]),
        (["model.head=paper", "data.train_sizes=[16]"], ["model.head=compact"]),
        (["network=A-LRN"], ["network=A-LRN", "model.batch_norm=false"]),
        (["stop.patience=3", "data.validation=0"], ["stop.patience", "data.validation"]),
        (["schedule.name=plateau", "data.validation=0"], ["schedule.name=plateau", "data.validation"]),
        (["evaluate.checkpoint=best", "data.validation=0"], ["evaluate.checkpoint=best", "data.validation"]),
        (["lookahead=5"], ["lookahead", "ema"]),
        (["log.gradient_norm=true", "engine=deepspeed"], ["log.gradient_norm=true", "engine=deepspeed"]),
        (["loss.on_nonfinite=skip", "engine=deepspeed"], ["loss.on_nonfinite=skip", "engine=deepspeed"]),
        (
            ["loss.on_nonfinite=skip", "communication.synchronise_every=2", "model.sync_batch_norm=false"],
            ["loss.on_nonfinite=skip", "communication.synchronise_every"],
        ),
        (["augment.strong_epochs=[1, 2]"], ["augment.strong_epochs", "augment.cutout"]),
        (["augment.strong_epochs=[2, 2]", "augment.cutout=4"], ["augment.strong_epochs must rise"]),
        (["augment.strong_epochs=[3, 2]", "augment.cutout=4"], ["augment.strong_epochs must rise"]),
        (["evaluate.views=0.6"], ["evaluate.views", "evaluate.protocol"]),
        (["evaluate.views=1.0", "evaluate.protocol=shifted"], ["evaluate.views"]),
        (["loss.hardest_size=16"], ["loss.hardest_size", "loss.hardest below 1"]),
        (["loss.hardest_size=32", "loss.hardest=0.5"], ["loss.hardest_size", "less than data.image_size"]),
        (
            ["loss.hardest_size=32", "loss.hardest=0.5", "model.head=paper", "data.image_size=64"],
            ["loss.hardest_size", "model.head=compact"],
        ),
        (["loss.hardest=0.5", "engine=deepspeed"], ["loss.hardest", "engine=deepspeed"]),
        (["loss.hardest=0.5", "augment.cutmix=1"], ["loss.hardest", "augment.cutmix"]),
        (["loss.hardest=0.5", "augment.mixup=1"], ["loss.hardest", "augment.mixup"]),
        (["optimizer.sharpness_radius=0.1", "engine=deepspeed"], ["optimizer.sharpness_radius", "engine=deepspeed"]),
        (
            ["optimizer.sharpness_radius=0.1", "communication.compression=powersgd"],
            ["optimizer.sharpness_radius", "communication.compression=powersgd"],
        ),
        (["lookahead=5", "ema=0.8", "engine=deepspeed"], ["lookahead", "engine=ddp"]),
        (["batch=10", "accumulation=4"], ["batch", "10", "accumulation", "4"]),
        (["optimizer.momentum=0"], ["optimizer.nesterov"]),
        (["optimizer.name=muon", "optimizer.momentum=0"], ["optimizer.nesterov"]),
        (["optimizer.name=muon", "model.batch_norm=false"], ["optimizer.muon_fixed_norm", "model.batch_norm"]),
        (["schedule.name=step"], ["schedule.milestones"]),
        (["schedule.name=step", "schedule.milestones=[3, 1]"], ["schedule.milestones"]),
        (["model.sync_batch_norm=true", "model.batch_norm=false"], ["model.sync_batch_norm", "model.batch_norm"]),
        (["model.norm_scale=false", "model.batch_norm=false"], ["model.norm_scale=false", "model.batch_norm=true"]),
        (["model.norm_momentum=0.4", "model.batch_norm=false"], ["model.norm_momentum", "model.batch_norm=true"]),
        (
            ["model.pool_before_norm=true", "model.batch_norm=false"],
            ["model.pool_before_norm", "model.batch_norm=true"],
        ),
        (["model.whiten=true", "model.initialize_from=runs/A"], ["model.whiten", "model.initialize_from"]),
        (["model.whiten=true", "engine=deepspeed", "deepspeed.stage=3"], ["model.whiten=true", "deepspeed.stage=2"]),
        (
            ["model.sync_batch_norm=true", "communication.synchronise_every=8"],
            ["model.sync_batch_norm", "communication.synchronise_every"],
        ),
        (["ema=0.9", "communication.synchronise_every=8"], ["ema", "communication.synchronise_every"]),
        (["precision=fp16", "communication.synchronise_every=8"], ["precision", "communication.synchronise_every"]),
        (
            ["checkpoint.every_steps=12", "communication.synchronise_every=8"],
            ["checkpoint.every_steps", "communication.synchronise_every", "8"],
        ),
        (
            ["communication.compression=powersgd", "communication.synchronise_every=8"],
            ["powersgd", "communication.synchronise_every"],
        ),
        (
            ["communication.bucket_mb=auto", "communication.synchronise_every=8"],
            ["communication.bucket_mb", "communication.synchronise_every"],
        ),
        (
            ["communication.split_head=all", "model.head=paper", "communication.synchronise_every=8"],
            ["split_head", "communication.synchronise_every"],
        ),
        (["communication.outer_momentum=0.9"], ["communication.outer_", "communication.synchronise_every"]),
        (["communication.compression=powersgd", "precision=fp16"], ["powersgd", "precision=fp16"]),
        (["recompute=stages", "compile=auto"], ["recompute", "compile"]),
        (["recompute=normalisation", "model.sync_batch_norm=true"], ["recompute", "model.sync_batch_norm"]),
        (["communication.split_head=host"], ["communication.split_head", "model.head=paper"]),
        (["communication.split_head=all", "model.head=paper", "ema=0.9"], ["communication.split_head", "ema"]),
        (
            ["communication.split_head=all", "model.head=paper", "optimizer.clip_norm=1"],
            ["communication.split_head", "optimizer.clip_norm"],
        ),
        (
            ["communication.split_head=all", "model.head=paper", "optimizer.name=lamb"],
            ["communication.split_head", "optimizer.name=lamb"],
        ),
        (
            ["communication.split_head=all", "model.head=paper", "precision=fp16"],
            ["communication.split_head", "precision=fp16"],
        ),
        (["communication.split_head=all", "model.head=paper", "compile=true"], ["communication.split_head", "compile"]),
        (
            ["loss.implementation=apex", "loss.class_weights=balanced"],
            ["loss.implementation=apex", "loss.class_weights"],
        ),
        (
            ["data.balance_classes=true", "loss.class_weights=balanced"],
            ["data.balance_classes", "loss.class_weights=balanced", "use one of them"],
        ),
        (["optimizer.implementation=apex", "optimizer.name=adamw"], ["optimizer.implementation=apex", "adamw"]),
        *(
            (["engine=deepspeed", "model.head=paper", word], [word.split("=")[0], "engine=ddp"])
            for word in (
                "communication.compression=bf16",
                "communication.bucket_mb=auto",
                "communication.synchronise_every=8",
                "communication.split_head=all",
                "compile=true",
                "optimizer.implementation=apex",
            )
        ),
        (["engine=deepspeed", "optimizer.name=lamb"], ["optimizer.name=lamb", "deepspeed.stage=0"]),
        (
            ["engine=deepspeed", "optimizer.name=lars", "deepspeed.stage=3"],
            ["optimizer.name=lars", "deepspeed.stage=0"],
        ),
        (["engine=deepspeed", "optimizer.name=muon"], ["optimizer.name=muon", "deepspeed.stage=0"]),
    ],
)
def test_rules_between_keys(words: list[str], expected: list[str], config_file: Path) -> None:
    message = refusal(config_file, *words)
    assert all(part in message for part in expected)


@pytest.mark.parametrize(
    "words",
    [
        ["data.resize=32"],
        ["model.head=paper", "data.image_size=32", "data.train_sizes=[32]"],
        ["network=A-LRN", "model.batch_norm=false"],
        ["batch=12", "accumulation=4"],
        ["optimizer.momentum=0", "optimizer.nesterov=false"],
        ["schedule.name=step", "schedule.milestones=[1, 3]"],
        ["engine=deepspeed", "optimizer.name=lamb", "deepspeed.stage=0"],
        ["engine=deepspeed", "deepspeed.stage=3", "optimizer.name=adamw", "model.sync_batch_norm=true"],
    ],
)
def test_what_keeps_the_rules_is_taken(words: list[str], config_file: Path) -> None:
    load(config_file, words)


@given(batch=st.integers(1, 500), size=st.integers(1, 20), accumulation=st.integers(1, 8))
def test_ranks_share_a_batch_evenly_or_not_at_all(batch: int, size: int, accumulation: int) -> None:
    if batch % accumulation:
        return
    config = Config(batch=batch, accumulation=accumulation)
    if batch % (size * accumulation) == 0:
        assert config.local_batch(size) * size == batch
    else:
        with pytest.raises(UserError) as caught:
            config.local_batch(size)
        if batch % size:
            words = str(caught.value).replace(";", "").split()
            offered = [int(word.removeprefix("batch=")) for word in words[words.index("use") :] if "batch=" in word]
            assert offered
            assert all(other % size == 0 and other > 0 for other in offered)


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("data.source=photos", "data.source={here}/photos"),
        ("data.source=~/photos", "data.source={home}/photos"),
        ("data.source='my photos'", "data.source={here}/my photos"),
        ("data.source=/a/../photos", "data.source=/photos"),
        ("data.source=digits", "data.source=digits"),
        ("model.initialize_from=~", "model.initialize_from=~"),
        ("model.initialize_from=Null", "model.initialize_from=Null"),
        ("model.initialize_from=", "model.initialize_from="),
        ("batch=32", "batch=32"),
    ],
)
def test_a_word_is_kept_with_the_whole_path_that_it_means(
    word: str, kept: str, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file.write_text("{}")
    monkeypatch.setenv("HOME", "/home/someone")
    found = with_absolute_path(word)
    assert found == kept.format(here=Path.cwd(), home="/home/someone")
    assert with_absolute_paths(load(config_file, [found])) == with_absolute_paths(load(config_file, [word]))

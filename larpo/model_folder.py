"""Model folders in Hugging Face's layout: checked, fingerprinted and written, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larpo.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # one weight file up to this size
_TOKENIZERS: tuple[tuple[str, ...], ...] = (  # one of these groups of files must be there
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spm.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("tekken.json",),
    ("tiktoken.model",),
)
_COPIED = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")  # what stands beside weights in a model folder


def check_model_folder(folder: Path) -> None:
    """DataError that names all that `folder` lacks to be a model: config, tokenizer, readable safetensors weights."""
    if not folder.is_dir():
        raise DataError(f"model folder {folder}: there is no such folder; give a folder with config.json")
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        missing.append("a tokenizer (tokenizer.json or tokenizer.model)")
    weights = weight_files(folder)
    if not weights:
        pickled = sorted(file.name for file in folder.glob("*.bin")) + sorted(
            file.name for file in folder.glob("*.pt*")
        )
        hint = f" ({pickled[0]} is a pickle, which is never opened: save it with safe_serialization)" if pickled else ""
        missing.append(f"weights as *.safetensors{hint}")
    missing += [name for name in _indexed(folder) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"model folder {folder}: lacks {', '.join(missing)}; add them, or give another folder")
    tensor_shapes(folder)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder, sorted by name."""
    return tuple(sorted(folder.glob("*.safetensors")))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; DataError when it is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); download or write it again") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: holds {type(values).__name__}, not a JSON object; download or write it again")
    return values


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a folder's weight files, from their headers."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise DataError(f"{path}: not readable as safetensors ({error}); download or write it again") from error
    return shapes


def fingerprint(folder: Path) -> str:
    """16 hex digits of SHA-256 over a model's config.json and weight files, names and contents."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", *weight_files(folder)):
        digest.update(f"{path.name}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()[:16]


def reader_fingerprint(folder: Path) -> str:
    """The same over all that decides what a model makes of a text: its tokenizer and chat template too."""
    digest = hashlib.sha256(fingerprint(folder).encode())
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _COPIED):
        digest.update(f"{path.name}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex; DataError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); is it still there?") from error


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its place at the end, or vanishes when the block raises.

    A model or adapter folder that stood there is replaced; anything else that is not an empty folder is a DataError.
    """
    is_model = any((destination / name).is_file() for name in ("config.json", "adapter_config.json"))
    replaceable = destination.is_dir() and (is_model or not any(destination.iterdir()))
    if destination.exists() and not replaceable:
        raise DataError(f"{destination}: is there already and is no model folder; give another place, or remove it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    own = f".{destination.name}.{uuid.uuid4().hex[:8]}"  # not what another makes, or a killed one has left
    new, old = (destination.parent / f"{own}.{which}" for which in ("new", "old"))
    new.mkdir()
    try:
        yield new
        for path in new.iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner reads
        if destination.exists():
            destination.rename(old)
        new.rename(destination)
    finally:
        if old.exists() and not destination.exists():
            old.rename(destination)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def save_model_folder(
    destination: Path,
    source_folder: Path,
    weights: Iterable[tuple[str, Tensor]] | Path,
    card: str,
    *,
    shard_bytes: int = SHARD_BYTES,
    chat_template: str | None = None,
) -> None:
    """Write a model that transformers and vLLM load: `weights` in the source model's surroundings, and a model card.

    `weights` are (name, tensor) pairs, held one shard at a time, or a safetensors file or a folder of such. Names and
    shapes must be those of the source folder; an output head tied to the embedding is not written again. Config
    (without quantization), tokenizer, chat template and generation config are the source's; `chat_template` is written
    beside them where the source has none. DataError otherwise.
    """
    expected = tensor_shapes(source_folder)
    pairs = _tensors_of(weights) if isinstance(weights, Path) else weights
    with new_folder(destination) as folder:
        for path in sorted(source_folder.iterdir()):
            if path.is_file() and path.suffix in _COPIED and path.name not in ("config.json", INDEX, "larpo.json"):
                shutil.copyfile(path, folder / path.name)
        dtypes = _write_shards(folder, _checked(pairs, expected, source_folder), shard_bytes)
        config = read_json(source_folder / "config.json")
        for stale in ("quantization_config", "torch_dtype", "_name_or_path"):
            config.pop(stale, None)
        if len(dtypes) == 1:
            config["dtype"] = dtypes.pop()
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _indexed(folder: Path) -> list[str]:
    """Weight files that the folder's index names."""
    index = folder / INDEX
    return sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() else []


def _tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, or of all in a folder, one at a time."""
    from safetensors import safe_open

    for file_path in weight_files(path) if path.is_dir() else (path,):
        with safe_open(file_path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def _checked(
    pairs: Iterable[tuple[str, Tensor]], expected: Mapping[str, tuple[int, ...]], source: Path
) -> Iterator[tuple[str, Tensor]]:
    """The pairs, contiguous and on the CPU; DataError for one that does not belong or is missing."""
    config = read_json(source / "config.json")
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings", "lm_head.weight" not in expected) else set()
    missing = {name for name in expected if name not in tied and not name.endswith("rotary_emb.inv_freq")}
    for name, tensor in pairs:
        if name in tied:
            continue  # the embedding again
        if expected.get(name) != tuple(tensor.shape):
            raise DataError(
                f"weights: {name} has shape {tuple(tensor.shape)}, but {source} has "
                f"{expected.get(name, 'no tensor of that name')}; save weights of that model, under its names"
            )
        missing.discard(name)
        yield name, _own_storage(tensor)
    if missing:
        raise DataError(f"weights: {len(missing)} of {source}'s tensors are missing, such as {sorted(missing)[:3]}")


def _own_storage(tensor: Tensor) -> Tensor:
    """A contiguous CPU tensor that shares its storage with nothing larger, as safetensors requires."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_shards(folder: Path, pairs: Iterable[tuple[str, Tensor]], shard_bytes: int) -> set[str]:
    """Write the tensors as one file, or as shards with an index; the names of their data types."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    dtypes, total, part = set(), 0, Path()
    for shard in _shards(pairs, shard_bytes):
        part = folder / f"part-{len(shards)}.safetensors"
        save_file(shard, part, metadata={"format": "pt"})
        shards.append(list(shard))
        dtypes |= {str(tensor.dtype).removeprefix("torch.") for tensor in shard.values()}
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(shards) == 1:
        part.rename(folder / "model.safetensors")
        return dtypes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return dtypes


def _shards(pairs: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor
    if shard:
        yield shard

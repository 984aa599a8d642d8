"""The local files that the names of checkpoints stand for, and the list of released weights."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from filelock import FileLock
from mmengine.fileio import backends, get_file_backend
from mmengine.logging import print_log

from se_mm.utils import InputError, sha256

OWN_WEIGHTS = Path(__file__).with_name('released')
HUB = 'hf-hub://'  # an address: repository on Hugging Face
STARTED = time.time()  # of this process, nearly


def released() -> list[dict]:
    """Weights of SE networks that their projects have released, from ``released.yml``.

    Returns:
        Dicts of ``checkpoint``, ``arguments`` of the backbone, ``error`` (top-1 and top-5 on ImageNet in %),
        ``images`` (normalisation, 'imagenet' or 'caffe') and, if not 224, ``size``.
    """
    return yaml.safe_load(Path(__file__).with_name('released.yml').read_text())


def fetch(checkpoint: str) -> Path:
    """The local file of a checkpoint, downloaded if need be, once for all processes of a machine.

    What lies at ``https://`` and in the tables of names is downloaded for good. What MMEngine has a file client for may
    be written again, and is copied anew unless a process has copied it since this one started.

    Args:
        checkpoint: a path; ``se_mm://NAME``, weights that came with this package; ``timm://NAME``; a name that
            MMEngine knows (``torchvision://``, ``open-mmlab://``, ``mmcls://``); an address (``https://``), or one that
            MMEngine has a file client for (``s3://``).

    Raises:
        InputError: the name or its scheme is unknown; the file is not in the cache and cannot be downloaded.
    """
    address = address_of(str(checkpoint))
    if '://' not in address:
        return Path(address).expanduser()
    if address.startswith(HUB):
        return _from_hub(checkpoint, address.removeprefix(HUB))
    return _from_address(checkpoint, address)


def address_of(checkpoint: str) -> str:
    """Where a checkpoint lies: a path, an address, or ``hf-hub://REPOSITORY``. Nothing is downloaded.

    Raises:
        InputError: the name or its scheme is unknown.
    """
    scheme, separator, name = checkpoint.partition('://')
    if not separator or scheme in ('http', 'https'):
        return checkpoint
    if scheme == 'se_mm':
        return str(_in_package(name))
    if scheme == 'timm':
        return _address_in_timm(name)
    tables = _openmmlab_names()
    if scheme in tables:
        models = tables[scheme]()
        if name not in models:
            similar = difflib.get_close_matches(name, models, n=5) or sorted(models)[:5]
            raise InputError(
                f'checkpoint {checkpoint}: MMEngine knows no such name; of its {len(models)} names similar are '
                f'{", ".join(similar)}'
            )
        return models[name] if models[name].startswith('http') else _in_mmengine_home(models[name])
    if scheme in backends.prefix_to_backends:
        return checkpoint
    known = sorted({'se_mm', 'timm', *tables, *filter(None, backends.prefix_to_backends)})
    names = ', '.join(f'{name}://' for name in known)
    raise InputError(f'checkpoint {checkpoint}: unknown scheme, known are {names}; or give a file')


def _in_package(name: str) -> Path:
    files = {path.stem.rpartition('-')[0]: path for path in sorted(OWN_WEIGHTS.glob('*.safetensors'))}
    if name not in files:
        raise InputError(f'checkpoint se_mm://{name}: the names of this package are {", ".join(files)}')
    return files[name]


def _openmmlab_names() -> dict[str, Callable[[], dict[str, str]]]:
    """MMEngine's tables of names, by their schemes."""
    from mmengine.runner import checkpoint as mm

    return {
        'torchvision': mm.get_torchvision_models,
        'modelzoo': mm.get_torchvision_models,
        'open-mmlab': mm.get_external_models,
        'openmmlab': mm.get_external_models,
        'mmcls': mm.get_mmcls_models,
    }


def _in_mmengine_home(path: str) -> str:
    from mmengine.runner.checkpoint import _get_mmengine_home

    return os.path.join(_get_mmengine_home(), path)


def _address_in_timm(name: str) -> str:
    if re.search(r'res(net|next)(aa|blur)', name):
        raise InputError(
            f'checkpoint timm://{name}: this network smooths its maps before strides (anti-aliasing), and no network '
            'of se_mm does: choose other weights'
        )
    try:
        import timm
    except ImportError as error:
        raise InputError(f"checkpoint timm://{name} needs timm: pip install 'se_mm[weights]'") from error
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        cfg = None
    if cfg is None or not cfg.has_weights:
        similar = timm.list_pretrained(f'*{name.partition(".")[0]}*')[:8]
        raise InputError(f'timm has no weights named {name!r}; similar: {", ".join(similar) or "none"}')
    return f'{HUB}{cfg.hf_hub_id}' if cfg.hf_hub_id else cfg.url


def _from_hub(checkpoint: str, repository: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    names = 'model.safetensors', 'pytorch_model.bin'
    for name in names:
        if isinstance(path := try_to_load_from_cache(repository, name), str):
            return Path(path)
    try:
        try:
            return Path(hf_hub_download(repository, names[0]))
        except LocalEntryNotFoundError:  # without a network; the second file would be tried for as long
            raise
        except EntryNotFoundError:
            return Path(hf_hub_download(repository, names[1]))
    except Exception as error:  # of many kinds
        url = f'https://huggingface.co/{repository}/resolve/main/model.safetensors'
        raise InputError(_no_download(checkpoint, url, "Hugging Face's cache", error)) from error


def _from_address(checkpoint: str, url: str) -> Path:
    name = Path(url.partition('?')[0]).name
    digest = _digest_in(name)
    # Files of one name from different addresses are told apart by their digest or by their address.
    folder = '' if digest else hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path(torch.hub.get_dir(), 'checkpoints', folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    changes = not url.startswith(('http://', 'https://'))
    with FileLock(f'{path}.lock'):
        if path.is_file() and (not changes or path.stat().st_mtime >= STARTED):
            again = '' if changes else '; delete the file to download it again'
            print_log(f'{checkpoint}: {path}, downloaded before{again}', 'current')
            return path
        print_log(f'downloading {url} to {path}', logger='current')
        try:
            if changes:
                partial = path.with_name(f'.{path.name}.partial')
                get_file_backend(url).copyfile_to_local(url, partial)
                partial.touch()  # a copy may have the time of its original
                partial.replace(path)
            else:
                torch.hub.download_url_to_file(url, str(path), digest)
        except Exception as error:  # of many kinds
            if changes:
                raise InputError(
                    f'checkpoint {checkpoint} cannot be copied ({_reason(error)}): give the path of a local copy'
                ) from error
            raise InputError(_no_download(checkpoint, url, path, error)) from error
    return path


def check_digest(path: Path, digits: object, checkpoint: str) -> None:
    """Compare a file with what is known of its SHA-256.

    Args:
        path: the file.
        digits: hexadecimal: all 64 or the first ones, at least 8.
        checkpoint: for the error.

    Raises:
        InputError: ``digits`` are none, or of another file.
    """
    if not isinstance(digits, str) or not re.fullmatch(r'[0-9a-fA-F]{8,64}', digits):
        raise InputError(f'init_cfg.sha256={digits!r}: give the text of 8 to 64 hexadecimal digits')
    if path.is_file() and not (found := sha256(path)).startswith(digits.lower()):
        raise InputError(
            f'checkpoint {checkpoint} is refused: the SHA-256 of {path} is {found}, and init_cfg.sha256={digits}. '
            'Download the file again, or ask its author'
        )


def _digest_in(name: str) -> str | None:
    """First digits of the SHA-256 in a file's name, by the convention of torch and OpenMMLab; a date is none."""
    found = re.search(r'-([a-f0-9]{8,})\.', name)
    if not found or re.fullmatch(r'(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])', found[1]):
        return None
    return found[1]


def _no_download(checkpoint: str, url: str, path: str | Path, error: Exception) -> str:
    return (
        f'checkpoint {checkpoint} is not in the cache and cannot be downloaded ({_reason(error)}): download {url} '
        f'elsewhere and give its path as checkpoint, or put it at {path}'
    )


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

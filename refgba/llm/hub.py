"""A model by its name on the hub: whether the hub can be reached is asked once.

transformers asks for each file, and again and again where there is no network: a mistyped name then takes half a
minute, and a model that lies in the cache as long for each of its files.
"""

from __future__ import annotations

from typing import Any

from refgba.errors import InputError, brief

PATIENCE = 10.0  # seconds that the hub has to answer


def options(name: str) -> dict[str, Any]:
    """What `from_pretrained` is given beside the name: that files are local where the hub cannot be reached.

    InputError for a name of which there is a model neither on the hub nor in the cache.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    neither = f"{name}: neither a folder, nor a .gguf file, nor a model in the cache"
    try:
        cached = isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str)
        huggingface_hub.model_info(name, timeout=PATIENCE)
    except HFValidationError:
        raise InputError(f"{neither}, and no name that the hub could have") from None
    except RepositoryNotFoundError:
        if not cached:
            raise InputError(f"{neither}, and the hub has none of this name that you may open") from None
    except HfHubHTTPError:
        return {}  # of a hub that has files and answers nothing else
    except Exception as error:  # of whatever speaks HTTP for huggingface_hub, which has changed
        if not cached:
            raise InputError(f"{neither}, and the hub cannot be reached ({brief(error)})") from None
        return {"local_files_only": True}
    return {}

"""OpenNMT-py can be imported without what only transforms need that no test applies."""

import importlib.machinery
import importlib.util
import sys
import types

if importlib.util.find_spec("onmt") is not None:
    for name in ("fasttext", "spacy"):
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = module

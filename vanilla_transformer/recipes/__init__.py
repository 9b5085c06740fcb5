"""Named complete runs as typed Python: architecture, data, optimisation, decoding, scoring."""

from . import inference, pretraining, question_answering, translation
from .execution import estimate, execute
from .inference import InferenceRecipe
from .models import describe_machine, environment, load_model, locate_model, model_kind
from .pretraining import PretrainingRecipe
from .question_answering import QuestionAnsweringRecipe
from .recipe import Recipe, changed, check_goes_on, read_recipe, write_recipe
from .translation import TranslationRecipe, both_sides

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for room in (translation, question_answering, inference, pretraining)
    for recipe in room.RECIPES
}


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


__all__ = [
    "RECIPES",
    "InferenceRecipe",
    "PretrainingRecipe",
    "QuestionAnsweringRecipe",
    "Recipe",
    "TranslationRecipe",
    "both_sides",
    "changed",
    "check_goes_on",
    "describe_machine",
    "environment",
    "estimate",
    "execute",
    "find_recipe",
    "load_model",
    "locate_model",
    "model_kind",
    "read_recipe",
    "write_recipe",
]

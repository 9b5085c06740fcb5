"""The embedded corpus: a small grammar that writes its own parallel text, questions and inferences.

English and German are generated together from one plan, so every English sentence has exactly one
German translation, and learning it means learning gender, case, agreement, adjective endings,
verb-second and verb-final order, separable verbs and the reference of pronouns.

Splits differ in *combinations*, not in words. A combination is a pair (adjective, noun), a pair
(subject, verb) or a triple (subject, verb, object); a checksum of its words gives it to one split
for ever. Training text uses training combinations only; every validation or test sentence has at
least one combination of its own split and none of the other's. The three splits are therefore
disjoint by construction, whatever the seeds and the counts.

Only the standard library is used, and of `random.Random` only `random()`, the one method whose
sequence Python promises not to change: the text is the same on every version and platform.
"""

import functools
import hashlib
import itertools
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

Split = Literal["train", "validation", "test"]
Phenomenon = Literal["negation", "quantifier", "coreference", "plain"]
T = TypeVar("T")

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2
_QUESTIONS_PER_PARAGRAPH = 3


# --- Lexicon -----------------------------------------------------------------------------------
# One word a line; "_" stands for a space inside a field, "-" for an empty field.


@dataclass(frozen=True, slots=True)
class _Noun:
    """A noun; `kinds` are the letters that verbs and adjectives select by."""

    english: str
    english_plural: str
    german: str
    german_plural: str
    gender: str
    # "he", "she", "it", or "" for the child and the girl, whose pronoun English leaves open.
    pronoun: str
    kinds: str

    @property
    def oblique(self) -> str:
        """Accusative and dative singular: weak masculine nouns add -n or -en (den Jungen)."""
        weak = self.gender == "m" and self.german in _WEAK_NOUNS
        return self.german_plural if weak else self.german

    @property
    def dative_plural(self) -> str:
        """Dative plural: -n is added unless the plural ends in -n or -s."""
        return self.german_plural if self.german_plural[-1] in "ns" else self.german_plural + "n"


@dataclass(frozen=True, slots=True)
class _Adjective:
    """An adjective; `stem` takes the endings (teuer, but ein teures Buch)."""

    english: str
    german: str
    stem: str
    kinds: str


@dataclass(frozen=True, slots=True)
class _Verb:
    """A verb; `third` is the German finite form without the separable `prefix`."""

    english: str
    english_third: str
    english_participle: str
    prefix: str
    stem_infinitive: str
    third: str
    participle: str
    case: str
    auxiliary: str
    subjects: str
    objects: str

    @property
    def infinitive(self) -> str:
        """Infinitive with its prefix (aufmachen)."""
        return self.prefix + self.stem_infinitive


@dataclass(frozen=True, slots=True)
class _Place:
    """A noun used as a place: English preposition, German preposition."""

    noun: _Noun
    english: str
    german: str


def _rows(table: str) -> list[list[str]]:
    return [
        ["" if field == "-" else field.replace("_", " ") for field in line.split()]
        for line in table.strip().splitlines()
    ]


_WEAK_NOUNS = frozenset({"Junge", "Prinz", "Löwe", "Bär"})

# Kinds: p person, a animal, t thing, c thing to carry, o to open, s to switch on, r to read.
_NOUNS = [
    _Noun(*row)
    for row in _rows("""
man          men           Mann        Männer        m he  p
king         kings         König       Könige        m he  p
boy          boys          Junge       Jungen        m he  p
uncle        uncles        Onkel       Onkel         m he  p
brother      brothers      Bruder      Brüder        m he  p
prince       princes       Prinz       Prinzen       m he  p
woman        women         Frau        Frauen        f she p
queen        queens        Königin     Königinnen    f she p
aunt         aunts         Tante       Tanten        f she p
sister       sisters       Schwester   Schwestern    f she p
princess     princesses    Prinzessin  Prinzessinnen f she p
grandmother  grandmothers  Großmutter  Großmütter    f she p
child        children      Kind        Kinder        n -   p
girl         girls         Mädchen     Mädchen       n -   p
dog          dogs          Hund        Hunde         m it  a
lion         lions         Löwe        Löwen         m it  a
bear         bears         Bär         Bären         m it  a
bird         birds         Vogel       Vögel         m it  a
cat          cats          Katze       Katzen        f it  a
cow          cows          Kuh         Kühe          f it  a
mouse        mice          Maus        Mäuse         f it  a
horse        horses        Pferd       Pferde        n it  a
rabbit       rabbits       Kaninchen   Kaninchen     n it  a
ball         balls         Ball        Bälle         m it  tc
hat          hats          Hut         Hüte          m it  tc
key          keys          Schlüssel   Schlüssel     m it  tc
letter       letters       Brief       Briefe        m it  tcr
cup          cups          Tasse       Tassen        f it  tc
flower       flowers       Blume       Blumen        f it  tc
lamp         lamps         Lampe       Lampen        f it  tcs
bottle       bottles       Flasche     Flaschen      f it  tco
door         doors         Tür         Türen         f it  to
book         books         Buch        Bücher        n it  tcr
shirt        shirts        Hemd        Hemden        n it  tc
radio        radios        Radio       Radios        n it  tcs
window       windows       Fenster     Fenster       n it  to
""")
]
_NOUN = {noun.english: noun for noun in _NOUNS}

# Kind l: place. English "in" of direction is "into", German takes the accusative for it.
_PLACES = [
    _Place(_Noun(english, "", german, "", gender, "it", "l"), english_in, german_in)
    for english, german, gender, english_in, german_in in _rows("""
garden  Garten  m in in
forest  Wald    m in in
kitchen Küche   f in in
school  Schule  f in in
city    Stadt   f in in
house   Haus    n in in
castle  Schloss n in in
village Dorf    n in in
bridge  Brücke  f on auf
tree    Baum    m under unter
""")
]

_ADJECTIVES = [
    _Adjective(*row)
    for row in _rows("""
old       alt       alt       patl
big       groß      groß      patl
small     klein     klein     patl
beautiful schön     schön     patl
young     jung      jung      pa
strong    stark     stark     pa
weak      schwach   schwach   pa
tired     müde      müd       pa
hungry    hungrig   hungrig   pa
happy     glücklich glücklich pa
sad       traurig   traurig   pa
sick      krank     krank     pa
friendly  freundlich freundlich pa
red       rot       rot       t
blue      blau      blau      t
green     grün      grün      t
black     schwarz   schwarz   at
white     weiß      weiß      at
new       neu       neu       tl
expensive teuer     teur      t
cheap     billig    billig    t
dirty     schmutzig schmutzig at
""")
]
_ADJECTIVE = {adjective.english: adjective for adjective in _ADJECTIVES}

_VERBS = [
    _Verb(*row)
    for row in _rows("""
see      sees      seen       -   sehen      sieht      gesehen      acc haben pa pat
hear     hears     heard      -   hören      hört       gehört       acc haben pa pa
find     finds     found      -   finden     findet     gefunden     acc haben pa pat
look_for looks_for looked_for -   suchen     sucht      gesucht      acc haben pa pac
love     loves     loved      -   lieben     liebt      geliebt      acc haben p  pa
paint    paints    painted    -   malen      malt       gemalt       acc haben p  pat
buy      buys      bought     -   kaufen     kauft      gekauft      acc haben p  ac
sell     sells     sold       -   verkaufen  verkauft   verkauft     acc haben p  ac
carry    carries   carried    -   tragen     trägt      getragen     acc haben p  c
lose     loses     lost       -   verlieren  verliert   verloren     acc haben p  c
hide     hides     hidden     -   verstecken versteckt  versteckt    acc haben p  c
clean    cleans    cleaned    -   putzen     putzt      geputzt      acc haben p  t
feed     feeds     fed        -   füttern    füttert    gefüttert    acc haben p  a
read     reads     read       -   lesen      liest      gelesen      acc haben p  r
visit    visits    visited    -   besuchen   besucht    besucht      acc haben p  p
greet    greets    greeted    -   grüßen     grüßt      gegrüßt      acc haben p  p
call     calls     called     an  rufen      ruft       angerufen    acc haben p  p
invite   invites   invited    ein laden      lädt       eingeladen   acc haben p  p
open     opens     opened     auf machen     macht      aufgemacht   acc haben p  o
close    closes    closed     zu  machen     macht      zugemacht    acc haben p  o
turn_on  turns_on  turned_on  ein schalten   schaltet   eingeschaltet acc haben p  s
turn_off turns_off turned_off aus schalten   schaltet   ausgeschaltet acc haben p  s
help     helps     helped     -   helfen     hilft      geholfen     dat haben p  pa
thank    thanks    thanked    -   danken     dankt      gedankt      dat haben p  p
follow   follows   followed   -   folgen     folgt      gefolgt      dat sein  pa pa
""")
]
_VERB = {verb.english: verb for verb in _VERBS}

# Two objects: a person in the dative, a thing in the accusative.
_GIVING_VERBS = [
    _Verb(*row)
    for row in _rows("""
give  gives  given   - geben   gibt   gegeben  acc haben p c
bring brings brought - bringen bringt gebracht acc haben p c
show  shows  shown   - zeigen  zeigt  gezeigt  acc haben p c
""")
]

_INTRANSITIVE_VERBS = [
    _Verb(*row)
    for row in _rows("""
sleep       sleeps       slept         -   schlafen schläft geschlafen   - haben pa -
play        plays        played        -   spielen  spielt  gespielt     - haben pa -
sing        sings        sung          -   singen   singt   gesungen     - haben p  -
dance       dances       danced        -   tanzen   tanzt   getanzt      - haben p  -
laugh       laughs       laughed       -   lachen   lacht   gelacht      - haben p  -
work        works        worked        -   arbeiten arbeitet gearbeitet  - haben p  -
wait        waits        waited        -   warten   wartet  gewartet     - haben pa -
get_up      gets_up      got_up        auf stehen   steht   aufgestanden - sein  pa -
fall_asleep falls_asleep fallen_asleep ein schlafen schläft eingeschlafen - sein pa -
arrive      arrives      arrived       an  kommen   kommt   angekommen   - sein  pa -
""")
]
_INTRANSITIVE = {verb.english: verb for verb in _INTRANSITIVE_VERBS}
_GO = _Verb("go", "goes", "gone", "", "gehen", "geht", "gegangen", "", "sein", "pa", "")
_BE = _Verb("be", "is", "been", "", "sein", "ist", "gewesen", "", "sein", "pat", "")
# Verbs that may take "with".
_WITH_VERBS = [_INTRANSITIVE["play"], _INTRANSITIVE["dance"], _INTRANSITIVE["work"]]
# Verbs that take a clause: English base, third; German third, plural.
_SAYING_VERBS = _rows("""
say   says   sagt   sagen
think thinks glaubt glauben
know  knows  weiß   wissen
hope  hopes  hofft  hoffen
""")

_MODALS = {
    # English singular, plural, negated singular, negated plural; German singular, plural.
    "can": ("can", "can", "cannot", "cannot", "kann", "können"),
    "must": ("must", "must", "", "", "muss", "müssen"),
    "should": ("should", "should", "should not", "should not", "sollte", "sollten"),
    "want": ("wants to", "want to", "does not want to", "do not want to", "will", "wollen"),
}
# Fronted adverbs turn German main clauses around: Heute schläft der Hund.
_ADVERBS = [("today", "heute"), ("now", "jetzt"), ("in the evening", "am Abend")]

# Pronouns by gender ("p" plural), in the order of the cases.
_CASES = ("nom", "acc", "dat")
_GERMAN_PRONOUNS = {
    "m": ("er", "ihn", "ihm"),
    "f": ("sie", "sie", "ihr"),
    "n": ("es", "es", "ihm"),
    "p": ("sie", "sie", "ihnen"),
}
_ENGLISH_OBJECT_PRONOUNS = {"he": "him", "she": "her", "it": "it", "they": "them"}
_RELATIVE_PRONOUNS = {
    "m": ("der", "den", "dem"),
    "f": ("die", "die", "der"),
    "n": ("das", "das", "dem"),
    "p": ("die", "die", "denen"),
}


def _articles() -> dict[tuple[str, str, str], tuple[str, str]]:
    """(determiner, case, gender or "p") -> (German word, adjective ending).

    Weak endings follow der, jeder and alle; mixed ones ein and kein; strong plural ones
    einige and zwei. Determiners of the plural are told apart by the gender "p".
    """
    genders = {"m": "en", "f": "e", "n": "e"}
    definite = {
        "m": ("der", "den", "dem"),
        "f": ("die", "die", "der"),
        "n": ("das", "das", "dem"),
        "p": ("die", "die", "den"),
    }
    every = {
        "m": ("jeder", "jeden", "jedem"),
        "f": ("jede", "jede", "jeder"),
        "n": ("jedes", "jedes", "jedem"),
    }
    indefinite = {"m": ("", "en", "em"), "f": ("e", "e", "er"), "n": ("", "", "em")}
    mixed_nominative = {"m": "er", "f": "e", "n": "es"}
    table = {}
    for index, case in enumerate(_CASES):
        for gender, accusative_ending in genders.items():
            weak = ("e", accusative_ending, "en")[index]
            mixed = (
                mixed_nominative[gender],
                "en" if gender == "m" else mixed_nominative[gender],
                "en",
            )[index]
            table["the", case, gender] = (definite[gender][index], weak)
            table["every", case, gender] = (every[gender][index], weak)
            for english, german in (("a", "ein"), ("no", "kein")):
                table[english, case, gender] = (german + indefinite[gender][index], mixed)
        strong = "en" if case == "dat" else "e"
        table["the", case, "p"] = (definite["p"][index], "en")
        table["all", case, "p"] = ("allen" if case == "dat" else "alle", "en")
        table["some", case, "p"] = ("einigen" if case == "dat" else "einige", strong)
        table["two", case, "p"] = ("zwei", strong)
    return table


_ARTICLES = _articles()
_SUBJECT_DETERMINERS = ("the",) * 9 + ("a",) * 3 + ("every", "no")
_OBJECT_DETERMINERS = ("the",) * 8 + ("a",) * 5 + ("every",)
_PLURAL_DETERMINERS = ("the", "the", "the", "some", "all", "two")


# --- Splits and drawing ------------------------------------------------------------------------


def _split_of(combination: Sequence[str]) -> Split:
    """The split that owns a combination of English words: a fixed tenth each is held out."""
    remainder = zlib.crc32("|".join(combination).encode("ascii")) % 10
    return "validation" if remainder == 0 else "test" if remainder == 1 else "train"


# Which of two clauses a hypothesis is about, which of them is denied, and whether the hypothesis is
# denied decide about the label only together: to a learner a riddle of parity, in which no single
# feature helps, and small models do not solve it in minutes. Of the training pairs this share
# therefore comes in one usual form, so that there is a first feature to hold on to. In the other
# pairs, and in all held-out text, every form is as frequent: the habit is of no use there.
_USUAL = 0.6


class _Draw:
    """Random choices for one stream, restricted to the combinations that its split may use.

    `unseen` turns true when a combination is used that training text never has; whoever plans a
    sentence clears it first.
    """

    def __init__(self, task: str, split: Split, seed: int) -> None:
        digest = hashlib.sha256(f"{task}/{split}/{seed}".encode("ascii")).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big")).random
        self.split = split
        self.unseen = False

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def shuffled(self, items: Sequence[T]) -> list[T]:
        # `random.shuffle` may change between Python versions; this permutation does not.
        return [item for _, item in sorted(((self._random(), item) for item in items), key=_first)]

    def is_usual(self) -> bool:
        """Whether a training pair is to come in the usual form: see `_USUAL`."""
        return self.chance(_USUAL if self.split == "train" else 0.0)

    def permits(self, *combination: str) -> bool:
        return _split_of(combination) in ("train", self.split)

    def use(self, *combination: str) -> None:
        """Record that the text contains `combination`."""
        if self.split != "train" and _split_of(combination) == self.split:
            self.unseen = True

    def adjective(self, noun: _Noun) -> _Adjective:
        adjective = self.choice(_adjectives_of(noun, self.split))
        self.use(adjective.english, noun.english)
        return adjective

    def transitive(self, subject: _Noun) -> tuple[_Verb, _Noun]:
        """A verb with an object that fits the subject."""
        verb, objects = self.choice(_transitives_of(subject, self.split))
        target = self.choice(objects)
        self.use(subject.english, verb.english, target.english)
        return verb, target

    def intransitive(self, subject: _Noun) -> _Verb:
        verb = self.choice(_intransitives_of(subject, self.split))
        self.use(subject.english, verb.english)
        return verb


def _first(pair: tuple[float, Any]) -> float:
    return pair[0]


def _shares_kind(left: str, right: str) -> bool:
    return not set(left).isdisjoint(right)


def _fits(adjective: _Adjective, noun: _Noun) -> bool:
    return _shares_kind(adjective.kinds, noun.kinds)


@functools.cache
def _adjectives_of(noun: _Noun, split: Split) -> list[_Adjective]:
    return [
        adjective
        for adjective in _ADJECTIVES
        if _fits(adjective, noun)
        and _split_of((adjective.english, noun.english)) in ("train", split)
    ]


@functools.cache
def _objects_of(subject: _Noun, verb: _Verb, split: Split) -> list[_Noun]:
    return [
        noun
        for noun in _NOUNS
        if _shares_kind(verb.objects, noun.kinds)
        and noun is not subject
        and _split_of((subject.english, verb.english, noun.english)) in ("train", split)
    ]


@functools.cache
def _transitives_of(subject: _Noun, split: Split) -> list[tuple[_Verb, list[_Noun]]]:
    verbs = [verb for verb in _VERBS if _shares_kind(verb.subjects, subject.kinds)]
    pairs = [(verb, _objects_of(subject, verb, split)) for verb in verbs]
    return [(verb, objects) for verb, objects in pairs if objects]


@functools.cache
def _intransitives_of(subject: _Noun, split: Split) -> list[_Verb]:
    return [
        verb
        for verb in _INTRANSITIVE_VERBS
        if _shares_kind(verb.subjects, subject.kinds)
        and _split_of((subject.english, verb.english)) in ("train", split)
    ]


_PERSONS = [noun for noun in _NOUNS if "p" in noun.kinds]
_ANIMALS = [noun for noun in _NOUNS if "a" in noun.kinds]
_THINGS = [noun for noun in _NOUNS if "t" in noun.kinds]
_GENDERED_PERSONS = [noun for noun in _PERSONS if noun.pronoun]
# Persons act more often than animals: they have more verbs.
_SUBJECTS = _PERSONS * 2 + _ANIMALS


# --- Phrases and clauses in both languages -----------------------------------------------------


@dataclass(slots=True)
class _Phrase:
    """A noun phrase or a pronoun, in both languages."""

    noun: _Noun
    plural: bool
    english: str
    # As the object of a verb: differs for pronouns only.
    english_object: str
    # Nominative, accusative, dative.
    german: tuple[str, str, str]

    @property
    def gender(self) -> str:
        return "p" if self.plural else self.noun.gender

    @property
    def english_pronoun(self) -> str:
        return "they" if self.plural else self.noun.pronoun

    def in_case(self, case: str) -> str:
        return self.german[_CASES.index(case)]


def _phrase(noun: _Noun, determiner: str, plural: bool, adjective: _Adjective | None) -> _Phrase:
    if plural:
        gender, english_noun = "p", noun.english_plural
        german_nouns = (noun.german_plural, noun.german_plural, noun.dative_plural)
    else:
        gender, english_noun = noun.gender, noun.english
        german_nouns = (noun.german, noun.oblique, noun.oblique)
    if adjective is None:
        english = f"{determiner} {english_noun}"
        german = [
            f"{_ARTICLES[determiner, case, gender][0]} {german_noun}"
            for case, german_noun in zip(_CASES, german_nouns, strict=True)
        ]
    else:
        english = f"{determiner} {adjective.english} {english_noun}"
        german = []
        for case, german_noun in zip(_CASES, german_nouns, strict=True):
            article, ending = _ARTICLES[determiner, case, gender]
            german.append(f"{article} {adjective.stem}{ending} {german_noun}")
    english = _with_an(english)
    return _Phrase(noun, plural, english, english, (german[0], german[1], german[2]))


def _with_an(english: str) -> str:
    if english.startswith("a ") and english[2] in "aeiou":
        return "an" + english[1:]
    return english


def _pronoun(phrase: _Phrase) -> _Phrase:
    """The pronoun that refers back to `phrase`: German follows the noun's gender."""
    english = phrase.english_pronoun
    return replace(
        phrase,
        english=english,
        english_object=_ENGLISH_OBJECT_PRONOUNS[english],
        german=_GERMAN_PRONOUNS[phrase.gender],
    )


@dataclass(slots=True)
class _Clause:
    """One clause before word order: German order depends on where the clause stands."""

    subject: _Phrase
    verb: _Verb
    # "present", "perfect" or a key of _MODALS.
    form: str
    negated: bool
    # What follows the verb in English.
    english_rest: str = ""
    # German objects and places, which stand before "nicht" ...
    german_objects: str = ""
    # ... and what stands after it: predicate, "mit dem Hund", "in den Garten".
    german_complement: str = ""
    # False where "kein" already says it.
    nicht: bool = True

    def english(self) -> str:
        """The English clause, subject first."""
        return _join(self.subject.english, self.english_predicate())

    def english_predicate(self) -> str:
        """The English clause without its subject."""
        plural, verb = self.subject.plural, self.verb
        if self.form == "perfect":
            finite = ("have" if plural else "has") + (" not" if self.negated else "")
            words = f"{finite} {verb.english_participle}"
        elif self.form != "present":
            words = f"{_MODALS[self.form][plural + 2 * self.negated]} {verb.english}"
        elif verb is _BE:
            words = ("are" if plural else "is") + (" not" if self.negated else "")
        elif self.negated:
            words = f"{'do' if plural else 'does'} not {verb.english}"
        else:
            words = verb.english if plural else verb.english_third
        return _join(words, self.english_rest)

    def german(self, order: Literal["main", "inverted", "subordinate", "relative"]) -> str:
        """The German clause: finite verb second, first (after a fronted part) or last.

        "relative" is "subordinate" without the subject, whose place the relative pronoun takes.
        """
        plural, verb = self.subject.plural, self.verb
        last = ""
        if self.form == "perfect":
            if verb.auxiliary == "haben":
                finite = "haben" if plural else "hat"
            else:
                finite = "sind" if plural else "ist"
            last = verb.participle
        elif self.form != "present":
            finite = _MODALS[self.form][4 + plural]
            last = verb.infinitive
        elif verb is _BE:
            finite = "sind" if plural else "ist"
        else:
            finite = verb.stem_infinitive if plural else verb.third
            # "macht ... auf" in a main clause, "aufmacht" where the verb is last.
            if order in ("subordinate", "relative"):
                finite = verb.prefix + finite
            else:
                last = verb.prefix
        nicht = "nicht" if self.negated and self.nicht else ""
        middle = (self.german_objects, nicht, self.german_complement, last)
        subject = self.subject.german[0]
        if order == "main":
            return _join(subject, finite, *middle)
        if order == "inverted":
            return _join(finite, subject, *middle)
        if order == "subordinate":
            return _join(subject, *middle, finite)
        return _join(*middle, finite)


def _join(*words: str) -> str:
    return " ".join(filter(None, words))


def _sentence(text: str) -> str:
    """Capital first letter, full stop; a clause's closing comma gives way to the full stop."""
    return text[0].upper() + text[1:].removesuffix(",") + "."


def _place_phrase(draw: _Draw, place: _Place, *, direction: bool = False) -> tuple[str, str]:
    """("in the big garden", "im großen Garten"), or with `direction` ("into ...", "in den ...")."""
    noun = place.noun
    adjective = draw.adjective(noun) if draw.chance(0.2) else None
    phrase = _phrase(noun, "the", False, adjective)
    german = f"{place.german} {phrase.in_case('acc' if direction else 'dat')}"
    if german.startswith("in dem "):
        german = "im " + german[7:]
    elif german.startswith("in das ") and adjective is None:
        german = "ins " + german[7:]
    english = place.english + ("to" if direction else "")
    return f"{english} {phrase.english}", german


# --- Translation -------------------------------------------------------------------------------


def _draw_phrase(
    draw: _Draw,
    noun: _Noun,
    determiners: Sequence[str],
    *,
    plural: float = 0.25,
    adjective: float = 0.35,
) -> _Phrase:
    described = draw.adjective(noun) if draw.chance(adjective) else None
    if draw.chance(plural):
        return _phrase(noun, draw.choice(_PLURAL_DETERMINERS), True, described)
    return _phrase(noun, draw.choice(determiners), False, described)


def _draw_form(draw: _Draw, negated: bool) -> str:
    if draw.chance(0.55):
        return "present"
    if draw.chance(0.4):
        return "perfect"
    # "must not" forbids and "muss nicht" merely allows the contrary: never negated here.
    return draw.choice(("can", "should", "want") if negated else tuple(_MODALS))


def _transitive_clause(
    draw: _Draw,
    subject: _Phrase,
    verb: _Verb,
    target: _Phrase,
    *,
    negated: bool,
    form: str,
    place: bool = False,
) -> _Clause:
    clause = _Clause(subject, verb, form, negated, target.english_object, target.in_case(verb.case))
    if place and not negated:
        english, german = _place_phrase(draw, draw.choice(_PLACES))
        clause.english_rest = f"{clause.english_rest} {english}"
        clause.german_objects = f"{clause.german_objects} {german}"
    return clause


def _draw_object(draw: _Draw, noun: _Noun, negated: bool) -> tuple[_Phrase, bool]:
    """An object phrase, and whether German still needs "nicht".

    Under negation only definite and indefinite objects have one reading, and an indefinite one
    turns ein into kein: "does not buy a book" is "kauft kein Buch".
    """
    if not negated:
        return _draw_phrase(draw, noun, _OBJECT_DETERMINERS), True
    phrase = _draw_phrase(draw, noun, ("the", "the", "a"), plural=0)
    if phrase.english.startswith(("a ", "an ")):
        german = tuple("k" + text for text in phrase.german)
        return replace(phrase, german=(german[0], german[1], german[2])), False
    return phrase, True


def _subject_phrase(draw: _Draw, noun: _Noun, negated: bool, adjective: float = 0.35) -> _Phrase:
    if negated:
        # "Every dog does not sleep" has two readings: only "the" is negated.
        described = draw.adjective(noun) if draw.chance(adjective) else None
        return _phrase(noun, "the", draw.chance(0.25), described)
    return _draw_phrase(draw, noun, _SUBJECT_DETERMINERS, adjective=adjective)


def _draw_clause(draw: _Draw, *, form: str | None = None, short: bool = False) -> _Clause:
    """Any clause of the world; `short` leaves out two objects, places and directions."""
    noun = draw.choice(_SUBJECTS)
    negated = draw.chance(0.25)
    form = form or _draw_form(draw, negated)
    kind = draw.choice(_SHORT_KINDS if short else _CLAUSE_KINDS)
    if kind == "predicate":
        noun = draw.choice(_NOUNS)
        subject = _subject_phrase(draw, noun, negated, adjective=0)
        adjective = draw.adjective(noun)
        return _Clause(subject, _BE, "present", negated, adjective.english, "", adjective.german)
    if kind == "giving":
        noun = draw.choice(_PERSONS)
    subject = _subject_phrase(draw, noun, negated)
    if kind == "transitive":
        verb, target_noun = draw.transitive(noun)
        target, nicht = _draw_object(draw, target_noun, negated)
        place = not short and draw.chance(0.2)
        clause = _transitive_clause(
            draw, subject, verb, target, negated=negated, form=form, place=place
        )
        clause.nicht = nicht
        return clause
    if kind == "giving":
        verb = draw.choice(_GIVING_VERBS)
        target_noun = draw.choice(_objects_of(noun, verb, draw.split))
        draw.use(noun.english, verb.english, target_noun.english)
        target, nicht = _draw_object(draw, target_noun, negated)
        person = draw.choice([other for other in _PERSONS if other is not noun])
        recipient = _phrase(person, "the", False, None)
        return _Clause(
            subject,
            verb,
            form,
            negated,
            f"{recipient.english} {target.english}",
            f"{recipient.in_case('dat')} {target.in_case('acc')}",
            nicht=nicht,
        )
    if kind == "direction":
        english, german = _place_phrase(draw, draw.choice(_PLACES[:8]), direction=True)
        return _Clause(subject, _GO, form, negated, english, "", german)
    verb = draw.intransitive(noun)
    clause = _Clause(subject, verb, form, negated)
    if short:
        return clause
    if verb in _WITH_VERBS and draw.chance(0.4):
        company_noun = draw.choice(_PERSONS if verb.subjects == "p" else _PERSONS + _ANIMALS)
        if company_noun is not noun:
            company = _draw_phrase(draw, company_noun, ("the", "a"))
            clause.english_rest = f"with {company.english}"
            clause.german_complement = f"mit {company.in_case('dat')}"
    elif not negated and draw.chance(0.5):
        clause.english_rest, clause.german_objects = _place_phrase(draw, draw.choice(_PLACES))
    return clause


_CLAUSE_KINDS = ("transitive",) * 5 + ("intransitive",) * 2 + ("giving", "direction", "predicate")
_SHORT_KINDS = ("transitive", "intransitive", "predicate")


def _simple(draw: _Draw) -> tuple[str, str]:
    clause = _draw_clause(draw)
    return clause.english(), clause.german("main")


def _fronted(draw: _Draw) -> tuple[str, str]:
    """A fronted adverb: "Today the man buys a book." / "Heute kauft der Mann ein Buch."."""
    english, german = draw.choice(_ADVERBS)
    clause = _draw_clause(draw, form=draw.choice(("present", "present", "can", "should", "want")))
    return f"{english} {clause.english()}", f"{german} {clause.german('inverted')}"


def _conditional(draw: _Draw) -> tuple[str, str]:
    """A fronted clause: the whole clause takes first place, so the verb follows it at once."""
    english, german = draw.choice((("when", "wenn"), ("because", "weil"), ("although", "obwohl")))
    first, second = _draw_clause(draw, short=True), _draw_clause(draw, short=True)
    return (
        f"{english} {first.english()}, {second.english()}",
        f"{german} {first.german('subordinate')}, {second.german('inverted')}",
    )


def _reported(draw: _Draw) -> tuple[str, str]:
    """Clauses after say, think, know, hope: "dass" and, for what is not known, "ob"."""
    noun = draw.choice(_PERSONS)
    verb, third, german_third, german_plural = draw.choice(_SAYING_VERBS)
    negated = draw.chance(0.3)
    subject = _subject_phrase(draw, noun, negated, adjective=0.2)
    conjunction, german_conjunction = "that", "dass"
    if negated and verb == "know":
        conjunction, german_conjunction = "whether", "ob"
    english_verb = verb if subject.plural else third
    if negated:
        english_verb = f"{'do' if subject.plural else 'does'} not {verb}"
    german_verb = german_plural if subject.plural else german_third
    german_main = _join(subject.german[0], german_verb, "nicht" if negated else "")
    clause = _draw_clause(draw, short=True)
    return (
        f"{subject.english} {english_verb} {conjunction} {clause.english()}",
        f"{german_main}, {german_conjunction} {clause.german('subordinate')}",
    )


def _coreferent(draw: _Draw) -> tuple[str, str]:
    """Two clauses joined by a pronoun whose antecedent English names without doubt.

    he, she, it or they fits exactly one noun phrase of the first clause; German must then find
    its gender: "the dog ... it" is "der Hund ... er", "the cat ... it" is "die Katze ... sie".
    """
    conjunction, german_conjunction, order = draw.choice(_CONJUNCTIONS)
    while True:
        noun = draw.choice(_GENDERED_PERSONS + _ANIMALS)
        verb, target_noun = draw.transitive(noun)
        subject = _draw_phrase(draw, noun, ("the", "the", "a"), adjective=0.25)
        target = _draw_phrase(draw, target_noun, ("the", "the", "a"), adjective=0.25)
        pronouns = (subject.english_pronoun, target.english_pronoun)
        # The child and the girl could be meant by he or she, so they compete with both.
        if pronouns[0] != pronouns[1] and all(pronouns):
            break
        draw.unseen = False
    form = draw.choice(("present", "present", "perfect"))
    first = _transitive_clause(draw, subject, verb, target, negated=False, form=form)
    negated = draw.chance(0.3)
    kind = draw.choice(("predicate", "both", "subject"))
    if kind == "both":
        objects = [
            verb
            for verb, nouns in _transitives_of(noun, draw.split)
            if target_noun in nouns and verb is not first.verb
        ]
        if objects:
            verb = draw.choice(objects)
            draw.use(noun.english, verb.english, target_noun.english)
            second = _transitive_clause(
                draw,
                _pronoun(subject),
                verb,
                _pronoun(target),
                negated=negated,
                form=_draw_form(draw, negated),
            )
        else:
            kind = "subject"
    if kind == "predicate":
        antecedent = draw.choice((subject, target))
        adjective = draw.adjective(antecedent.noun)
        second = _Clause(
            _pronoun(antecedent),
            _BE,
            "present",
            negated,
            adjective.english,
            "",
            adjective.german,
        )
    elif kind == "subject":
        verb = draw.intransitive(noun)
        second = _Clause(_pronoun(subject), verb, _draw_form(draw, negated), negated)
    return (
        f"{first.english()}{conjunction} {second.english()}",
        f"{first.german('main')}, {german_conjunction} {second.german(order)}",
    )


_CONJUNCTIONS: tuple[tuple[str, str, Literal["main", "subordinate"]], ...] = (
    (" because", "weil", "subordinate"),
    (" although", "obwohl", "subordinate"),
    (", but", "aber", "main"),
)


def _relative(draw: _Draw) -> tuple[str, str]:
    """Relative clauses on the subject or the object of a short main clause."""
    clause = _draw_clause(draw, form="present", short=True)
    kind = draw.choice(("on_subject", "by_object"))
    head = clause.subject
    pronouns = _RELATIVE_PRONOUNS[head.gender]
    english_pronoun = "who" if "p" in head.noun.kinds else "that"
    if kind == "by_object" or "t" in head.noun.kinds:
        # "the dog that the woman buys": the head is the object of the relative clause.
        while True:
            agent = draw.choice(_PERSONS)
            verbs = [
                verb for verb, nouns in _transitives_of(agent, draw.split) if head.noun in nouns
            ]
            if verbs and agent is not head.noun:
                break
        verb = draw.choice(verbs)
        draw.use(agent.english, verb.english, head.noun.english)
        inner = _Clause(_subject_phrase(draw, agent, True, adjective=0.1), verb, "present", False)
        german = f"{pronouns[_CASES.index(verb.case)]} {inner.german('subordinate')}"
        english = f"{'that' if english_pronoun == 'that' else 'whom'} {inner.english()}"
    else:
        if draw.chance(0.6):
            verb, target_noun = draw.transitive(head.noun)
            target = _draw_phrase(draw, target_noun, ("the", "the", "a"), adjective=0.15)
            inner = _transitive_clause(
                draw, head, verb, target, negated=False, form=_draw_form(draw, False)
            )
        else:
            verb = draw.intransitive(head.noun)
            inner = _Clause(head, verb, _draw_form(draw, False), False)
        german = f"{pronouns[0]} {inner.german('relative')}"
        english = f"{english_pronoun} {inner.english_predicate()}"
    clause.subject = replace(
        head,
        english=f"{head.english} {english}",
        german=(f"{head.german[0]}, {german},", head.german[1], head.german[2]),
    )
    return clause.english(), clause.german("main")


_CONSTRUCTIONS: tuple[Callable[[_Draw], tuple[str, str]], ...] = (
    *(_simple,) * 9,
    *(_fronted,) * 3,
    _conditional,
    *(_reported,) * 2,
    *(_coreferent,) * 4,
    *(_relative,) * 2,
)


def generate_translation(split: Split, count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """English-German sentence pairs.

    Args:
        split: "train", "validation" or "test"; the latter two hold unseen combinations.
        count: number of pairs.
        seed: another seed gives other sentences of the same split.

    Yields:
        {"source": English, "target": German}. A pair may recur in a long stream.

    Raises:
        ValueError: for an unknown split or a negative count, at the call.
    """
    _check(split, count)
    return itertools.islice(_translations(_Draw("translation", split, seed)), count)


def _translations(draw: _Draw) -> Iterator[dict[str, str]]:
    while True:
        draw.unseen = False
        english, german = draw.choice(_CONSTRUCTIONS)(draw)
        if draw.split == "train" or draw.unseen:
            yield {"source": _sentence(english), "target": _sentence(german)}


def _check(split: str, count: int) -> None:
    if split not in get_args(Split):
        raise ValueError(
            f"split ({split!r}) must be one of {', '.join(map(repr, get_args(Split)))}; "
            "try split='train'"
        )
    if count < 0:
        raise ValueError(f"count ({count}) must not be negative; try count=1000")


# --- Question answering ------------------------------------------------------------------------


@dataclass(slots=True)
class _Fact:
    """Who does what where in one sentence, with the place in the context of each answer."""

    subject: _Noun
    verb: _Verb
    target: _Noun
    who: tuple[int, str]
    what: tuple[int, str]
    where: tuple[int, str] | None = None
    place: _Place | None = None


# What can be done first with a thing or an animal, and then to it at a place.
_FIRST_VERBS = tuple(_VERB[name] for name in ("see", "find", "buy", "carry"))
_THEN_VERBS = tuple(_VERB[name] for name in ("hide", "lose", "clean", "paint", "feed"))


class _Paragraph:
    """A context under construction: sentences, and where each noun phrase stands in them."""

    def __init__(self) -> None:
        self.text = ""
        self.facts: list[_Fact] = []

    def write(self, *parts: str) -> list[tuple[int, str]]:
        """Append one sentence; returns (offset, text) of each part, in order."""
        start = len(self.text) + (1 if self.text else 0)
        spans = []
        position = start
        for part in parts:
            shown = part[0].upper() + part[1:] if position == start else part
            spans.append((position, shown))
            position += len(shown) + 1
        sentence = " ".join(text for _, text in spans)
        self.text = _join(self.text, sentence + ".")
        return spans


def generate_question_answering(
    split: Split, count: int, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Extractive questions in SQuAD's schema, three to a paragraph: who, what and where.

    Paragraphs tell short episodes: someone acts on a thing or an animal, then "he", "she" and "it"
    go on. Most questions need the pronouns resolved, by gender where two persons are present.

    Args and Raises: as `generate_translation`.

    Yields:
        {"id", "title", "context", "question", "answers": {"text": [str], "answer_start": [int]}},
        `answer_start` in characters. Each question has exactly one answer in its context.
    """
    _check(split, count)
    return itertools.islice(_questions(_Draw("question-answering", split, seed), seed), count)


def _questions(draw: _Draw, seed: int) -> Iterator[dict[str, Any]]:
    for number in itertools.count():
        paragraph = _draw_paragraph(draw)
        title = f"Tiny world, paragraph {number}"
        for index, (question, (start, text)) in enumerate(_ask(draw, paragraph)):
            yield {
                "id": f"{draw.split}-{seed}-{number}-{index}",
                "title": title,
                "context": paragraph.text,
                "question": question,
                "answers": {"text": [text], "answer_start": [start]},
            }


def _draw_paragraph(draw: _Draw) -> _Paragraph:
    while True:
        draw.unseen = False
        paragraph = _Paragraph()
        # Every noun, verb and place occurs in one episode only: no question has two answers.
        persons = draw.shuffled(_GENDERED_PERSONS)
        things = draw.shuffled([noun for noun in _THINGS if "c" in noun.kinds] + _ANIMALS)
        places = draw.shuffled(_PLACES)
        verbs = draw.shuffled(_FIRST_VERBS)
        later_verbs = draw.shuffled(_THEN_VERBS)
        giving = draw.chance(0.5)
        complete = True
        for episode in draw.shuffled(("first", "second", "bystander")):
            if episode == "bystander":
                animal = things.pop()
                if animal not in _ANIMALS:
                    animal = next(noun for noun in things if noun in _ANIMALS)
                    things.remove(animal)
                _bystander(draw, paragraph, animal, places.pop())
                continue
            complete = complete and _episode(
                draw,
                paragraph,
                persons,
                things,
                places,
                verbs,
                later_verbs,
                giving=giving and episode == "second",
            )
        if complete and (draw.split == "train" or draw.unseen):
            return paragraph


def _bystander(draw: _Draw, paragraph: _Paragraph, animal: _Noun, place: _Place) -> None:
    """An animal that does something elsewhere, to be told apart from the answer."""
    verb = draw.intransitive(animal)
    paragraph.write(f"the {animal.english}", verb.english_third, place.english, _the(place.noun))


def _the(noun: _Noun) -> str:
    return f"the {noun.english}"


def _episode(
    draw: _Draw,
    paragraph: _Paragraph,
    persons: list[_Noun],
    things: list[_Noun],
    places: list[_Place],
    verbs: list[_Verb],
    later_verbs: list[_Verb],
    *,
    giving: bool,
) -> bool:
    """Write two sentences about one thing and record their facts.

    Takes its words out of the lists. Returns False where the words left do not fit together.
    """
    actor = person = persons.pop()
    if giving:
        # The other gender, so that he or she says who goes on.
        recipient = next(other for other in persons if other.pronoun != person.pronoun)
        persons.remove(recipient)
        verb = draw.choice(_GIVING_VERBS)
        actor = draw.choice((person, recipient))
    else:
        verb = verbs.pop()
    target = next(
        (
            noun
            for noun in things
            if _shares_kind(verb.objects, noun.kinds)
            and draw.permits(person.english, verb.english, noun.english)
        ),
        None,
    )
    later = next(
        (
            other
            for other in later_verbs
            if target is not None
            and _shares_kind(other.objects, target.kinds)
            and draw.permits(actor.english, other.english, target.english)
        ),
        None,
    )
    if target is None or later is None:
        return False
    things.remove(target)
    later_verbs.remove(later)
    draw.use(person.english, verb.english, target.english)
    draw.use(actor.english, later.english, target.english)
    described = draw.adjective(target) if draw.chance(0.6) else None
    thing = _phrase(target, "a", False, described).english
    if giving:
        spans = paragraph.write(_the(person), verb.english_third, _the(recipient), thing)
        who = spans[0] if actor is person else spans[2]
    else:
        spans = paragraph.write(_the(person), verb.english_third, thing)
        who = spans[0]
    what = spans[-1]
    paragraph.facts.append(_Fact(person, verb, target, spans[0], what))
    place = places.pop()
    then = paragraph.write(
        actor.pronoun, later.english_third, "it", place.english, _the(place.noun)
    )
    paragraph.facts.append(_Fact(actor, later, target, who, what, then[-1], place))
    return True


def _ask(draw: _Draw, paragraph: _Paragraph) -> list[tuple[str, tuple[int, str]]]:
    """One question each of who, what and where, with its answer, in random order."""
    who, what = draw.choice(paragraph.facts), draw.choice(paragraph.facts)
    where = draw.choice([fact for fact in paragraph.facts if fact.place is not None])
    assert where.where is not None
    does = f"does the {where.subject.english} {where.verb.english} the {where.target.english}"
    return draw.shuffled(
        [
            (f"Who {who.verb.english_third} the {who.target.english}?", who.who),
            (f"What does the {what.subject.english} {what.verb.english}?", what.what),
            (f"Where {does}?", where.where),
        ]
    )


# --- Natural language inference ----------------------------------------------------------------


def generate_inference(split: Split, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Premise and hypothesis with their relation, balanced over labels and phenomena.

    The hypothesis is drawn before the label, and a premise is then written for that label: the
    hypothesis alone says nothing about the label. "Some" means at least one, and what is
    quantified over exists ("every big dog" says that there are big dogs), as people read it.
    Neutral is what the premise leaves open in logic, whatever it may hint at.

    Training pairs about negation and plain ones prefer one form (`_USUAL`), held-out pairs do not.

    Args and Raises: as `generate_translation`.

    Yields:
        {"premise", "hypothesis", "label", "phenomenon"}; label 0 entailment, 1 neutral,
        2 contradiction. Every 12 in a row hold each label of each phenomenon once.
    """
    _check(split, count)
    return itertools.islice(_inferences(_Draw("inference", split, seed)), count)


def _inferences(draw: _Draw) -> Iterator[dict[str, Any]]:
    cells = tuple(itertools.product(_INFERENCES, (ENTAILMENT, NEUTRAL, CONTRADICTION)))
    while True:
        for phenomenon, label in draw.shuffled(cells):
            premise, hypothesis = _INFERENCES[phenomenon](draw, label)
            yield {
                "premise": premise,
                "hypothesis": hypothesis,
                "label": label,
                "phenomenon": phenomenon,
            }


def _permitted(draw: _Draw, stated: tuple[str, ...], *others: tuple[str, ...]) -> bool:
    """Whether a scene suits the split: all of it permitted, and the hypothesis held out.

    Decided before the label is looked at, over all that any label's premise could say; otherwise
    a combination that is missing from a split would give labels away.
    """
    if not draw.permits(*stated) or not all(draw.permits(*other) for other in others):
        return False
    return draw.split == "train" or _split_of(stated) == draw.split


# None of these implies or excludes another.
_INDEPENDENT_VERBS = [_VERB[name] for name in ("love", "hear", "paint", "look for", "follow")]


def _negation(draw: _Draw, label: int) -> tuple[str, str]:
    """One clause affirmed, one denied: which of the two is the hypothesis about?"""
    while True:
        subject, other_subject = draw.shuffled(_GENDERED_PERSONS)[:2]
        verb, other_verb = draw.shuffled(_INDEPENDENT_VERBS)[:2]
        target, other_target = draw.shuffled(_ANIMALS)[:2]
        combinations = [
            (who.english, does.english, what.english)
            for who, does, what in (
                (subject, verb, target),
                (subject, verb, other_target),
                (other_subject, verb, target),
                (other_subject, verb, other_target),
                (subject, other_verb, target),
            )
        ]
        if _permitted(draw, *combinations):
            break
    usual = draw.is_usual()
    negated = not usual and draw.chance(0.5)
    hypothesis = _statement(subject, verb, target, negated)
    stated = negated
    if label == CONTRADICTION:
        stated = not negated
    elif label == NEUTRAL:
        stated = draw.chance(0.5)
        if draw.chance(0.5):
            subject = other_subject
    first_verb = verb
    if label == NEUTRAL and subject is not other_subject:
        first_verb = other_verb
    clauses = [(first_verb, target, stated), (verb, other_target, not stated)]
    if not usual:
        clauses = draw.shuffled(clauses)
    (verb_1, target_1, negated_1), (verb_2, target_2, negated_2) = clauses
    premise = _statement(subject, verb_1, target_1, negated_1)
    second = _predicate(verb_2, f"the {target_2.english}", negated_2)
    return f"{premise[:-1]}, but {subject.pronoun} {second}.", hypothesis


def _statement(subject: _Noun, verb: _Verb, target: _Noun, negated: bool) -> str:
    return f"The {subject.english} {_predicate(verb, 'the ' + target.english, negated)}."


def _predicate(verb: _Verb, rest: str, negated: bool) -> str:
    """The singular verb with what follows: "does not see the dog", "is not hungry"."""
    if verb is _BE:
        return _join("is not" if negated else "is", rest)
    return _join(f"does not {verb.english}" if negated else verb.english_third, rest)


def _coreference(draw: _Draw, label: int) -> tuple[str, str]:
    """Two actors, then a pronoun: is it about the one that the hypothesis names?"""
    while True:
        subject = draw.choice(_GENDERED_PERSONS)
        other = draw.choice([noun for noun in _PERSONS + _ANIMALS if noun.pronoun])
        first, second = draw.shuffled((subject, other))
        verb = draw.choice([verb for verb in _VERBS if _acts_on(first, verb, second)])
        # The hypothesis may be about either: an animal can only be described here.
        described = "a" in other.kinds or draw.chance(0.4)
        combinations: list[tuple[str, ...]]
        named, unnamed = draw.shuffled((subject, other))
        if named.pronoun == unnamed.pronoun:
            continue
        meeting = (first.english, verb.english, second.english)
        if described:
            adjective = draw.choice([word for word in _ADJECTIVES if "pa" in word.kinds])
            later, rest = _BE, adjective.english
            combinations = [(adjective.english, who.english) for who in (named, unnamed)]
        else:
            later = draw.choice([verb for verb in _VERBS if "p" in verb.subjects])
            target = draw.choice(_NOUNS)
            if (
                later is verb
                or target in (subject, other)
                or not _shares_kind(later.objects, target.kinds)
            ):
                continue
            rest = f"the {target.english}"
            combinations = [
                (who.english, later.english, target.english) for who in (named, unnamed)
            ]
        if _permitted(draw, *combinations, meeting):
            break
    negated = draw.chance(0.5)
    hypothesis = f"The {named.english} {_predicate(later, rest, negated)}."
    about = unnamed if label == NEUTRAL else named
    stated = negated
    if label == CONTRADICTION or (label == NEUTRAL and draw.chance(0.5)):
        stated = not negated
    meeting_text = _statement(first, verb, second, False)
    return f"{meeting_text} {about.pronoun.capitalize()} {_predicate(later, rest, stated)}.", (
        hypothesis
    )


def _acts_on(subject: _Noun, verb: _Verb, target: _Noun) -> bool:
    return _shares_kind(verb.subjects, subject.kinds) and _shares_kind(verb.objects, target.kinds)


# Opposites that exclude each other, all fit for whatever the first is fit for.
_OPPOSITES = [
    (_ADJECTIVE[left], _ADJECTIVE[right])
    for left, right in (
        ("big", "small"),
        ("old", "young"),
        ("old", "new"),
        ("strong", "weak"),
        ("happy", "sad"),
        ("cheap", "expensive"),
        ("black", "white"),
    )
]
# Colours exclude each other too: what is red is not black.
_COLOURS = [_ADJECTIVE[name] for name in ("red", "blue", "green", "black", "white")]
_EXCLUDING = {frozenset(pair) for pair in (*_OPPOSITES, *itertools.combinations(_COLOURS, 2))}


def _plain(draw: _Draw, label: int) -> tuple[str, str]:
    """An adjective and its opposite: on the noun of the hypothesis, or on the other one?"""
    usual = draw.is_usual()
    while True:
        first = draw.choice(_PERSONS + _ANIMALS)
        verb, second = draw.transitive(first)
        named, unnamed = (first, second) if usual else draw.shuffled((first, second))
        stated, opposite = draw.shuffled(draw.choice(_OPPOSITES))
        third = draw.choice(_ADJECTIVES)
        if not all(_fits(word, noun) for word in (stated, opposite) for noun in (first, second)):
            continue
        # The third adjective must leave open both of the others.
        if not _fits(third, named) or third in (stated, opposite):
            continue
        if any(frozenset((third, word)) in _EXCLUDING for word in (stated, opposite)):
            continue
        combinations = [
            (word.english, noun.english)
            for word, noun in (
                (stated, named),
                (opposite, named),
                (third, named),
                (stated, unnamed),
                (opposite, unnamed),
            )
        ]
        if _permitted(draw, *combinations):
            break
    if label == ENTAILMENT:
        adjectives = {named: stated, unnamed: opposite}
    elif label == CONTRADICTION:
        adjectives = {named: opposite, unnamed: stated}
    else:
        adjectives = {named: third, unnamed: draw.choice((stated, opposite))}
    premise = (
        f"The {adjectives[first].english} {first.english} {verb.english_third} "
        f"the {adjectives[second].english} {second.english}."
    )
    return premise, f"The {named.english} is {stated.english}."


@dataclass(frozen=True)
class _Quantified:
    """A form "QUANTIFIER [ADJECTIVE] NOUN VERB [PLACE]"."""

    quantifier: str
    adjective: bool
    place: bool

    def holds(self, world: tuple["_Individual", ...]) -> bool:
        """Truth in a world of the noun's individuals."""
        meant = [one for one in world if one.has_adjective or not self.adjective]
        acts = [one.acts_there if self.place else one.acts for one in meant]
        if self.quantifier in ("every", "all"):
            return all(acts)
        if self.quantifier == "not every":
            return not all(acts)
        return any(acts) == (self.quantifier == "some")

    def text(self, adjective: str, noun: _Noun, verb: _Verb, place: str) -> str:
        plural = self.quantifier in ("all", "some")
        return (
            _join(
                self.quantifier.capitalize(),
                adjective if self.adjective else "",
                noun.english_plural if plural else noun.english,
                verb.english if plural else verb.english_third,
                place if self.place else "",
            )
            + "."
        )


@dataclass(frozen=True)
class _Individual:
    """One individual; whoever acts at the place acts."""

    has_adjective: bool
    acts: bool
    acts_there: bool


@functools.cache
def _quantified_premises() -> list[tuple[_Quantified, dict[int, list[_Quantified]]]]:
    """Each hypothesis form with the premise forms of each label, found by trying all worlds.

    A premise entails what holds in all of its worlds, contradicts what holds in none, and leaves
    the rest open. No form here counts, so one individual of a sort stands for any number, and a
    world is a set of sorts. Only worlds with an individual that has the adjective are tried.
    """
    sorts = [
        _Individual(described, acts, there)
        for described, acts, there in itertools.product((False, True), repeat=3)
        if acts or not there
    ]
    worlds = [
        world
        for size in range(1, len(sorts) + 1)
        for world in itertools.combinations(sorts, size)
        if any(one.has_adjective for one in world)
    ]
    forms = [
        _Quantified(*parts)
        for parts in itertools.product(
            ("every", "all", "some", "no", "not every"), (False, True), (False, True)
        )
    ]
    truths = {form: {world for world in worlds if form.holds(world)} for form in forms}
    table = []
    for hypothesis in forms:
        premises: dict[int, list[_Quantified]] = {ENTAILMENT: [], NEUTRAL: [], CONTRADICTION: []}
        for premise in forms:
            if premise == hypothesis:
                continue
            if truths[premise] <= truths[hypothesis]:
                premises[ENTAILMENT].append(premise)
            elif truths[premise].isdisjoint(truths[hypothesis]):
                premises[CONTRADICTION].append(premise)
            else:
                premises[NEUTRAL].append(premise)
        if all(premises.values()):
            table.append((hypothesis, premises))
    return table


def _quantifier(draw: _Draw, label: int) -> tuple[str, str]:
    """Every, all, some, no, not every: with and without a restriction."""
    while True:
        noun = draw.choice(_PERSONS + _ANIMALS)
        verb = draw.choice(_INTRANSITIVE_VERBS)
        adjective = draw.choice([word for word in _ADJECTIVES if "pa" in word.kinds])
        if _shares_kind(verb.subjects, noun.kinds) and _permitted(
            draw, (noun.english, verb.english), (adjective.english, noun.english)
        ):
            break
    place = draw.choice(_PLACES)
    hypothesis, premises = draw.choice(_quantified_premises())
    premise = draw.choice(premises[label])
    words = (adjective.english, noun, verb, f"{place.english} the {place.noun.english}")
    return premise.text(*words), hypothesis.text(*words)


_INFERENCES: dict[Phenomenon, Callable[[_Draw, int], tuple[str, str]]] = {
    "negation": _negation,
    "quantifier": _quantifier,
    "coreference": _coreference,
    "plain": _plain,
}

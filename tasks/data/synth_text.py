"""Sentences for synthetic speech, from a seeded grammar of our own: what they say matters little, their sounds do.

English has a grammar, so that its sentences read like speech; the other languages are there for their sounds and
have words in a row. Text is lower case, with letters, spaces and apostrophes alone.
"""

from __future__ import annotations

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
SLOTS = {
    "person": (
        "my brother", "the old captain", "a young teacher", "our neighbour", "the doctor", "your cousin", "the judge",
        "nobody", "everyone in town", "the gardener", "that strange visitor", "a quiet girl", "the youngest child",
        "the baker's wife", "his uncle", "the whole crew", "a soldier", "their mother", "the singer", "someone else",
    ),
    "thing": (
        "bridge", "yellow jacket", "window", "garden gate", "engine", "letter", "silver watch", "orange", "kitchen",
        "treasure", "umbrella", "mirror", "church bell", "rough path", "wooden box", "cheese", "guitar", "horse",
        "broken chair", "thick rope", "village", "boiler", "photograph", "feather", "puzzle", "house by the river",
        "yacht", "magazine", "shovel", "candle", "voyage", "theory", "leather glove", "jar of honey", "zipper",
    ),
    "quality": (
        "warm", "quite heavy", "fresh", "strangely quiet", "much too small", "very old", "good enough", "beautiful",
        "far away", "dry", "almost new", "huge", "usual", "rather cold", "smooth", "square", "worth a lot", "bright",
        "thin", "joyful", "rough", "poor", "clear", "ready", "made of glass", "purple", "wide open", "unusual",
    ),
    "did": (
        "found", "carried", "looked at", "sold", "painted", "measured", "forgot about", "asked for", "repaired",
        "watched", "dreamed of", "threw away", "pushed", "chose", "bought", "described", "never saw", "enjoyed",
        "should have changed", "laughed at", "washed", "reached for", "brought back", "joined", "would not touch",
    ),
    "do": (
        "open", "carry", "look for", "sell", "paint", "measure", "forget", "watch", "fetch", "clean", "buy", "bring",
        "leave", "choose", "pull", "borrow", "describe", "share", "keep", "move", "finish with", "think about",
    ),
    "where": (
        "behind the school", "near the harbour", "under the bridge", "in the northern valley", "on the other side",
        "at the station", "across the street", "beyond the hills", "in the middle of the forest", "by the shore",
        "along the coast", "outside the castle", "next to the fire", "upstairs", "over there", "between two trees",
    ),
    "when": (
        "this morning", "last thursday", "in july", "before sunrise", "after the storm", "every evening", "at noon",
        "long ago", "for the third time", "just now", "while it rained", "without a word", "as usual", "in a hurry",
        "on the fifth of march", "during the war", "that year", "all winter", "once again", "when the music stopped",
    ),
    "lead": (
        "i think", "they say", "perhaps", "of course", "you know", "i'm afraid", "we hoped", "it's true that",
        "suddenly", "to my surprise", "she told me", "don't forget that", "i'd guess", "nevertheless",
    ),
}  # fmt: skip
TEMPLATES = (
    "{person} {did} the {thing} {when}",
    "{person} {did} the {thing} {where}",
    "the {thing} was {quality}",
    "the {thing} {where} is {quality}",
    "{lead} {person} {did} {number} of them {when}",
    "{lead} the {thing} is {quality}",
    "why did {person} {do} the {thing}",
    "please {do} the {thing} {when}",
    "is the {thing} {where} really {quality}",
    "{when} {person} {did} a {quality} {thing}",
    "we'll {do} it {where} {when}",
    "there are {number} ways to {do} a {thing}",
    "it takes {number} minutes to {do} the {thing}",
    "{person} and {person} {did} the {thing}",
    "take the {thing} and {do} it {where}",
    "call {digits}",
    "{number} and {number}",
    "{digits}",
)
WORDS = {
    "de": "eins zwei drei vier fünf sechs sieben acht neun zehn straße mädchen licht brücke früh schön bücher nacht "
    "jung zwischen fenster über pferd schlüssel freude wasser heute gestern kirche vogel geschichte langsam und oder",
    "fr": "un deux trois quatre cinq six sept huit neuf dix maison jardin lumière rouge fenêtre chanson neige bonjour "
    "demain feuille oiseau grand petite voyage chien rivière heureux toujours montagne beurre jeune soleil et dans",
    "es": "uno dos tres cuatro cinco seis siete ocho nueve diez casa perro calle lluvia jardín ventana mañana niño "
    "guitarra rojo verde pequeño viejo zapato queso ciudad hermano siempre camino noche agua y pero sobre",
    "it": "uno due tre quattro cinque sei sette otto nove dieci casa giardino luce finestra strada bambino chiesa "
    "gatto acqua rosso vecchio sempre domani famiglia bello zucchero pioggia montagna scuola giorno e con",
    "pt": "um dois três quatro cinco seis sete oito nove dez casa jardim janela chuva menino coração amanhã velho "
    "pequeno luz cidade irmão sempre caminho noite água vermelho pão canção viagem e com",
    "nl": "een twee drie vier vijf zes zeven acht negen tien huis tuin straat raam regen licht vrouw jongen vogel "
    "morgen altijd klein groot water brug schip geel gezicht schoen vuur deur en zonder",
    "pl": "jeden dwa trzy cztery pięć sześć siedem osiem dziewięć dziesięć dom ogród okno deszcz światło dziewczyna "
    "chłopiec ptak jutro zawsze mały duży woda most żółty twarz książka źródło morze i bez",
    "sv": "ett två tre fyra fem sex sju åtta nio tio hus trädgård fönster regn ljus flicka pojke fågel imorgon alltid "
    "liten stor vatten bro gul skepp sjö kärlek skog norr och utan",
}
"""Numbers and common words, enough to hear each language's sounds."""


def write_sentence(rng: np.random.Generator, language: str = "en", short: bool = False) -> str:
    """A sentence to be spoken in about 1 to 6 seconds.

    Args:
        rng: source of the words.
        language: `en` or a key of WORDS.
        short: a few words only.
    """
    if language != "en":
        words = WORDS[language].split()
        count = rng.integers(4, 6 if short else 10)
        return " ".join(words[index] for index in rng.integers(0, len(words), count))
    template = _pick(rng, TEMPLATES[2:3] if short else TEMPLATES)
    parts = template.split(" ")
    return " ".join(_fill(rng, part) for part in parts)


def write_digits(rng: np.random.Generator) -> str:
    """Three to six English digits as words, each as likely as the others."""
    return " ".join(_pick(rng, DIGITS) for _ in range(rng.integers(3, 7)))


def _fill(rng: np.random.Generator, part: str) -> str:
    if part == "{number}":
        kind = rng.integers(3)
        if kind == 0:
            return _pick(rng, DIGITS[2:])
        return _pick(rng, TEENS) if kind == 1 else f"{_pick(rng, TENS)} {_pick(rng, DIGITS[1:])}"
    if part == "{digits}":
        return " ".join(_pick(rng, DIGITS) for _ in range(rng.integers(3, 8)))
    return _pick(rng, SLOTS[part[1:-1]]) if part.startswith("{") else part


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]

"""The small invented world that the quickstart's texts are about: people, organizations, places, products.

Every text comes with the entities it names, so that questions and extraction rows can be made from it. All choices come
from a `random.Random` handed in: the same seed gives the same text.
"""

from dataclasses import dataclass

TYPES = ["person", "organization", "location", "product"]

FIRST_NAMES = (
    "Adam Alice Amina Anna Anton Bela Boris Carla Chen Clara Daniel David Diana Elena Elias Emil Emma Erik Eva "
    "Farid Felix Freya Georg Hana Hugo Ida Igor Ines Ivan Jakob Jana Joel Julia Karim Kenji Lara Lea Leon Lina "
    "Lucas Mara Marco Maria Mei Milan Mira Nadia Nils Nina Noah Olga Omar Oscar Paula Petra Rosa Ruth Samir Sara "
    "Sofia Stefan Tara Theo Tom Vera Victor Wei Yara Yusuf Zoe"
).split()
NAME_STARTS = (
    "Al Ar Bar Bel Bor Cal Car Dal Dor El Far Fen Gar Gor Hal Hol Jan Kal Kor Lan Lor Mar Mel Nor Or Pel Ros Sal "
    "Tor Val Vin Wal Zan"
).split()
NAME_ENDS = (
    "ac ano berg by dal den der ek elli er eva feld gard haus ic ida ili in ino iss ko land man mont nik o ov "
    "rick sen son stad ton va vik wood"
).split()
PLACE_ENDS = "burg bridge dale field ford haven mouth port shire ville".split()
# 289 invented words, dealt to the kinds of names. They are few enough that the tokenizer has a token for most of them:
# a model this small can learn to point at a name in a text, not to spell it.
STEMS = [start + end for place, end in enumerate(NAME_ENDS) for start in NAME_STARTS[place % 4 :: 4]]
SURNAMES, COMPANIES = STEMS[0::3], STEMS[1::3]
PLACES = [stem + PLACE_ENDS[place % len(PLACE_ENDS)] for place, stem in enumerate(STEMS[2::3])]
KINDS = (
    "Airlines Bank Chemicals Electric Energy Foods Foundation Group Insurance Labs Media Motors Museum Pharma "
    "Railways Shipping Software Steel Telecom University"
).split()
PRODUCT_WORDS = (
    "Aero Atlas Beacon Comet Coral Delta Echo Falcon Horizon Lotus Nova Onyx Orbit Pixel Pulse Quartz Raven "
    "Sierra Spark Tempo Titan Vega"
).split()
PRODUCT_MARKS = "X Pro Max Mini Lite 2 3 4 5 7 8 9 One Plus".split()
GOODS = [
    "electric car", "phone", "laptop", "camera", "engine", "tablet", "drone", "printer", "watch", "speaker",
    "bicycle", "battery",
]
ROLES = [
    "chief executive", "founder", "director", "spokesperson", "chairman", "engineer", "head of research", "analyst",
    "manager",
]
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
TOPICS = [
    "the results", "the new plan", "the merger", "rising costs", "the strike", "the price of steel", "a new law",
    "the weather", "climate research", "the budget",
]
ADVERBS = [
    "quickly", "again", "at last", "for the first time", "without warning", "this year", "last week",
    "in the spring",
]

WORDS = {"role": ROLES, "topic": TOPICS, "day": DAYS, "month": MONTHS, "adverb": ADVERBS, "goods": GOODS}

# Slots in capitals are entities, the others are ordinary words. One slot may occur twice with different contents.
TEMPLATES = [
    "{PERSON} works for {ORGANIZATION} in {LOCATION}.",
    "{PERSON}, the {role} of {ORGANIZATION}, spoke about {topic} on {day}.",
    "{ORGANIZATION} will open a new office in {LOCATION} in {month}.",
    "{ORGANIZATION} presented the {PRODUCT}, a {goods} that costs {number} dollars.",
    "The {PRODUCT} is a {goods} made by {ORGANIZATION}.",
    "{PERSON} moved from {LOCATION} to {LOCATION} {adverb}.",
    "{PERSON} and {PERSON} met in {LOCATION} on {day}.",
    "{ORGANIZATION} bought {ORGANIZATION} for {number} million dollars.",
    "In {month}, {PERSON} became the {role} of {ORGANIZATION}.",
    "Shares of {ORGANIZATION} fell {adverb} after {PERSON} left the company.",
    "The mayor of {LOCATION}, {PERSON}, thanked {ORGANIZATION} for its help.",
    "More than {number} people in {LOCATION} have ordered the {PRODUCT}.",
    "{PERSON} bought a {PRODUCT} in {LOCATION} for {number} dollars.",
    "{ORGANIZATION} said on {day} that the {PRODUCT} will be sold in {LOCATION} and {LOCATION}.",
    "\"We are proud of the {PRODUCT},\" said {PERSON} of {ORGANIZATION}.",
    "\"I have lived in {LOCATION} for {number} years,\" said {PERSON}.",
    "The train from {LOCATION} to {LOCATION} was late {adverb}.",
    "It rained in {LOCATION} for {number} days.",
    "Nobody knows why the {PRODUCT} stopped working {adverb}.",
    "{PERSON} was born in {LOCATION} and studied at {ORGANIZATION}.",
    "Workers of {ORGANIZATION} in {LOCATION} talked about {topic} until {day}.",
    "{ORGANIZATION} and {ORGANIZATION} will build a {goods} together, {PERSON} said.",
    "After {number} years at {ORGANIZATION}, {PERSON} will return to {LOCATION}.",
    "The {role} of {ORGANIZATION} did not want to talk about {topic}.",
    "Critics like the {PRODUCT} more than the {PRODUCT}.",
    "{ORGANIZATION} of {LOCATION} sold {number} thousand {PRODUCT} units in {month}.",
    "A {goods} was stolen in {LOCATION} on {day}, and {PERSON} called the police.",
    "{PERSON} showed {PERSON} the new {PRODUCT}.",
    "Visitors came to {LOCATION} in {month} to hear {PERSON} speak about {topic}.",
    "On {day} everybody talked about {topic}.",
]


@dataclass
class Story:
    """A text of one or two sentences, and per entity type its names in the order they first occur."""

    text: str
    entities: dict


def choose(rng, items):
    return items[int(rng.random() * len(items))]


def name(rng, names, reserved):
    """One of `names`; every fifth is reserved, and only taken when that is allowed."""
    return choose(rng, names if reserved else [item for place, item in enumerate(names) if place % 5])


def entity(rng, kind, reserved):
    if kind == "person":
        return f"{name(rng, FIRST_NAMES, reserved)} {name(rng, SURNAMES, reserved)}"
    if kind == "organization":
        return f"{name(rng, COMPANIES, reserved)} {choose(rng, KINDS)}"
    if kind == "product":
        return f"{name(rng, PRODUCT_WORDS, reserved)} {choose(rng, PRODUCT_MARKS)}"
    return name(rng, PLACES, reserved)


def word_for(rng, slot):
    if slot == "number":
        return str(int(2 + rng.random() * 98) * choose(rng, [1, 1, 5, 10]))
    return choose(rng, WORDS[slot])


def sentence(rng, entities, reserved=True):
    """One sentence; the names it uses are added to `entities`."""
    pieces = choose(rng, TEMPLATES).replace("{", "}").split("}")
    for place in range(1, len(pieces), 2):
        slot = pieces[place]
        if slot.isupper():
            pieces[place] = entity(rng, slot.lower(), reserved)
            if pieces[place] not in entities[slot.lower()]:
                entities[slot.lower()].append(pieces[place])
        else:
            pieces[place] = word_for(rng, slot)
    return "".join(pieces)


def story(rng, reserved=True, two=0.3):
    """One sentence, or with probability `two` two of them."""
    entities = {kind: [] for kind in TYPES}
    count = 2 if rng.random() < two else 1
    return Story(" ".join(sentence(rng, entities, reserved) for _ in range(count)), entities)

"""Where answers stand in a rendered conversation, found without qwentune: the oracle of scripts/check_templates.py.

The rule, the same for every template. It follows from what masks are for and knows nothing of how qwentune finds
answers (marks of its own on every character, followed through an engine of its own). What is scored of an answer is
what a model would have to write: all that comes after the text that transformers writes with add_generation_prompt,
up to and with the token that ends the answer.

1. Whose a character is. The row is rendered a second time, by transformers too, with every letter of message i moved
   i + 1 places in its alphabet, a digit among the digits, a sign among the signs. What differs belongs to a message,
   and the distance tells to which. What is the same is the template's, a space, or a sign that is never moved.
   Tags (`<think>`) are moved with the rest; where the template then takes another way (the texts have other lengths,
   or differ otherwise), only letters and digits outside of tags are moved; where that fails too, nothing is judged.
2. Where it begins. Behind the prompt of the messages before it, for the run's setting of thinking or another, the
   longest that the rendering begins with. Where histories are written in another way than prompts, behind the last
   opening before the answer's first letter and after the letters of other messages; an opening is what
   add_generation_prompt adds to a bare question (beside the row's tools), up to `<think>` or `</think>`. An answer
   without letters begins behind the only opening between its neighbours' letters. Without an opening: where
   {% generation %} encloses the answer, there.
3. Text that the opening goes on with for some setting of thinking (`<think>\n`) is no part of the answer when it
   stands there, whoever wrote it: the model is given it. Nor are empty thoughts that the template writes.
4. Where it ends. With the first end token behind its last letter, which must be the first behind its beginning as
   well, and stand before another message's letters and before another opening. System messages may stand anywhere.
5. What may be lost. Nothing of the last answer, of what users and tools say or of a system message, and nothing may
   stand there twice. Of earlier answers thoughts may be left out.

What the first run of it over 946 templates showed (45 645 masks equal, 536 not), and what became of it:
- it looked for the opening first and for the whole prompt after it. Falcon3's prompt ends without the line feed that
  its other setting has, and Intern-S1, Typhoon and Bielik have another system message with the other setting, so that
  no model is given the opening that stood there: the prompt decides, as the first sentence says;
- it left out `<think>\n` behind an opening only where the template wrote it. Where the row writes it (QwQ and others),
  the model is given it all the same;
- a template that needs tools has no bare question without them (Hermes 2 Pro); a system message may be written into
  the last question (Ministral); markers may be all there is to see (Mistral Nemo, FinanceParam);
- spaces are not moved, so it took the row's line feeds for the template's behind empty thoughts: no longer judged;
- qwentune was wrong in A.X-K1 (`<think>` of the row behind an opening was scored), and was mended.

Where a step finds nothing, the answer cannot be told and must be refused by qwentune (`Unreadable`, with the reason);
`Unjudged` is what this rule itself cannot see: only that counts neither way.
"""

import copy
import re
import unicodedata

TAG = re.compile(r"</?\w+>")
NO_THOUGHTS = re.compile(r"(<think>)?\n*</think>\n+")
ALPHABETS = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "!#$%&()*+,-.:;=?@[]^_`{|}~'"]
IN_ALPHABET = {letter: alphabet for alphabet in ALPHABETS for letter in alphabet}


class Unreadable(Exception):
    """The answers cannot be told: a step of the rule finds nothing."""


class Unjudged(Exception):
    """The rule cannot see this."""


def moved(letter, distance, signs, digits):
    """The letter so many places further; itself where it has no alphabet."""
    alphabet = IN_ALPHABET.get(letter)
    if alphabet is None:
        if letter.isascii() or letter.isspace() or unicodedata.category(letter)[0] in "CM":
            return letter
        other = chr(ord(letter) + distance)
        alike = unicodedata.category(letter) == unicodedata.category(other) and letter.lower() == letter.upper()
        return other if alike else letter
    if (alphabet is ALPHABETS[2] and not digits) or (alphabet is ALPHABETS[3] and not signs):
        return letter
    return alphabet[(alphabet.index(letter) + distance) % len(alphabet)]


class Mover:
    """Moves a row's letters, and knows afterwards whose they are."""

    def __init__(self, row, tags):
        self.tags, self.digits = tags, len(row["messages"]) < 10
        self.letters = [0] * len(row["messages"])
        self.thoughts = [0] * len(row["messages"])
        self.row = {**row, "messages": [self.message(i, m) for i, m in enumerate(row["messages"])]}

    def letter(self, letter, message):
        """A letter of a message, moved."""
        return moved(letter, message + 1, self.tags, self.digits)

    def text(self, text, message):
        """A text of a message, moved; what is moved in it is counted."""
        kept = set() if self.tags else {place for tag in TAG.finditer(text) for place in range(*tag.span())}
        other = "".join(letter if place in kept else self.letter(letter, message) for place, letter in enumerate(text))
        self.letters[message] += sum(a != b for a, b in zip(text, other))
        return other

    def value(self, value, message):
        """All texts of a value."""
        if isinstance(value, str):
            return self.text(value, message)
        if isinstance(value, list):
            return [self.value(item, message) for item in value]
        if isinstance(value, dict):
            return {key: self.value(item, message) for key, item in value.items()}
        return value

    def message(self, number, message):
        """A message with its texts moved: content, thoughts, names and arguments of calls."""
        message = copy.deepcopy(message)
        content = message.get("content")
        if isinstance(content, str):
            message["content"] = self.text(content, number)
            before = sum(a != b for a, b in zip(content.rpartition("</think>")[0], message["content"]))
            self.thoughts[number] += before
        elif isinstance(content, list):
            message["content"] = [{**part, "text": self.text(part["text"], number)} for part in content]
        if message.get("reasoning_content"):
            before = self.letters[number]
            message["reasoning_content"] = self.text(message["reasoning_content"], number)
            self.thoughts[number] += self.letters[number] - before
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            function["name"] = self.text(function["name"], number)
            function["arguments"] = self.value(function["arguments"], number)
        return message

    def owners(self, plain, other):
        """For each character its message; None: it is not moved. Nothing where the template took another way."""
        if other is None or len(plain) != len(other):
            return None
        owners = []
        for letter, changed in zip(plain, other):
            if letter == changed:
                owners.append(None)
                continue
            whose = [i for i in range(len(self.letters)) if self.letter(letter, i) == changed]
            if len(whose) != 1:
                return None
            owners.append(whose[0])
        return owners


class Reading:
    """The answers of one rendered row. `render(row, thinking, prompt)` is transformers' text, or None; `marked` are
    the places that the template encloses in {% generation %}."""

    def __init__(self, row, text, thinking, modes, end, render, marked):
        self.row, self.plain, self.end, self.marked = row, text, end, marked
        self.modes, self.render = modes, render
        for tags in (True, False):
            self.mover = Mover(row, tags)
            self.other = render(self.mover.row, thinking, False)
            self.owners = self.mover.owners(text, self.other)
            if self.owners is not None:
                break
        else:
            raise Unjudged("the template looks into the letters")
        self.places = [[] for _ in row["messages"]]
        for place, owner in enumerate(self.owners):
            if owner is not None:
                self.places[owner].append(place)
        self.openings = self.find_openings()

    def find_openings(self):
        """What prompts add to a bare question: up to a tag of thoughts, and what follows."""
        question = {**self.row, "messages": [{"role": "user", "content": "question"}]}
        openings = set()
        for mode in self.modes:
            prompt, bare = (self.render(question, mode, prompt) for prompt in (True, False))
            if prompt is not None and bare is not None and prompt.startswith(bare):
                opening = re.split(r"</?think>", prompt[len(bare):])[0]
                openings.add((opening, prompt[len(bare) + len(opening):]))
        return {pair for pair in openings if pair[0]}

    def own(self, wanted, start, stop):
        """Where the template itself writes something, and that is not moved: the end of each place."""
        place = self.plain.find(wanted, start, stop)
        while place >= 0:
            if self.other[place:place + len(wanted)] == wanted:
                yield place + len(wanted)
            place = self.plain.find(wanted, place + 1, stop)

    def answers(self):
        """Start and end of every answer."""
        self.check_losses()
        messages = self.row["messages"]
        return [self.answer(i) for i in range(len(messages)) if messages[i]["role"] == "assistant"]

    def answer(self, number):
        """Start and end of one answer."""
        mine = self.places[number]
        ordered = [i for i, message in enumerate(self.row["messages"]) if message["role"] not in ("system", "developer")]
        before = [place for i in ordered if i < number for place in self.places[i]]
        everyone = [place for i, places in enumerate(self.places) if i != number for place in places]
        if mine:
            low = max((place for place in everyone if place < mine[0]), default=-1) + 1
            high = min((place for place in everyone if place > mine[0]), default=len(self.plain))
        else:
            after = [place for i in ordered if i > number for place in self.places[i]]
            low, high = max(before, default=-1) + 1, min(after, default=len(self.plain))
        if mine and (mine[-1] > high or any(place > mine[0] for place in before)):
            raise Unreadable("another message's letters stand within it or in another order")
        start = self.start(number, low, mine[0] if mine else high, bool(mine))
        stop = mine[-1] + 1 if mine else start
        first, ends = (next(self.own(self.end, place, high), None) for place in (start, stop))
        if ends is None:
            raise Unreadable("no end token follows it")
        if first != ends:
            raise Unreadable("an end token stands within it")
        if any(next(self.own(opening, start, ends), None) for opening, _ in self.openings):
            raise Unreadable("another opening stands within it")
        return [start, ends]

    def start(self, number, low, high, has_letters):
        """Where an answer begins."""
        start = self.behind_prompt(number, low, high)
        if start is None:
            start = self.behind_opening(number, low, high, has_letters)
        empty = NO_THOUGHTS.match(self.plain, start)
        if empty is None or not self.other.startswith(empty[0], start):
            return start
        said = str(self.row["messages"][number].get("content"))
        if said.startswith("\n") or (not self.mover.tags and re.search(r"(^|<think>)\s*</think>", said)):
            raise Unjudged("whether empty thoughts, or line feeds behind them, are the row's or the template's")
        return empty.end()

    def behind_prompt(self, number, low, high):
        """The end of the longest prompt that the rendering begins with."""
        asked = {**self.row, "messages": self.row["messages"][:number]}
        prompts = [self.render(asked, mode, True) for mode in self.modes] if number else []
        last = max(self.places[number], default=high)
        return max((len(p) for p in prompts if p and self.plain.startswith(p) and low <= len(p) <= last), default=None)

    def behind_opening(self, number, low, high, has_letters):
        """The end of the last opening, and of what it goes on with."""
        places = sorted({(place, rest) for opening, rest in self.openings for place in self.own(opening, low, high)})
        if not places:
            holds = [a for a, b in self.marked if self.places[number] and a <= self.places[number][0] < b]
            if not holds:
                raise Unreadable("no opening stands before it, and no prompt")
            return holds[0]
        if not has_letters and len({place for place, _ in places}) > 1:
            raise Unjudged("an answer without letters beside another opening")
        start = places[-1][0]
        rests = [rest for place, rest in places if place == start and self.plain.startswith(rest, start)]
        return start + max(map(len, rests), default=0)

    def check_losses(self):
        """Step 5 of the rule."""
        messages = self.row["messages"]
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
        for number, places in enumerate(self.places):
            written, said = len(places), self.mover.letters[number]
            if written > said:
                raise Unreadable("something stands there twice")
            thoughts = self.mover.thoughts[number] if messages[number]["role"] == "assistant" and number != last else 0
            if written < said - thoughts:
                raise Unreadable("something is lost")


def read(row, text, thinking, modes, end, render, marked=()):
    """The places of all answers of a rendering.

    Raises `Unreadable` where they cannot be told, `Unjudged` where this rule cannot see them.
    """
    return Reading(row, text, thinking, modes, end, render, marked).answers()

"""Conversations for scripts/check_templates.py: what people's rows hold, each trait once, and random ones."""

import json

TOOL = {"type": "function", "function": {"name": "weather", "description": "Looks up the weather; 天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Bonn", "Köln"]},
                                                        "days": {"type": "integer", "default": 1}},
                       "required": ["city"]}}}
OTHER = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {
         "a": {"type": "number", "default": 0.5}, "b": {"type": "number", "minimum": 1e-07},
         "c": {"type": "boolean", "default": True}, "d": {"type": ["string", "null"], "default": None},
         "e": {"type": "array", "items": {"type": "string"}, "default": ["x", 1, False]},
         "f": {"type": "object", "properties": {"g": {"type": "integer", "maximum": 10, "description": "deep"}}}}}}}


def user(text):
    """A question."""
    return {"role": "user", "content": text}


def system(text):
    """A system message."""
    return {"role": "system", "content": text}


def answer(text, **more):
    """An answer."""
    return {"role": "assistant", "content": text, **more}


def tool(text, **more):
    """A tool's result."""
    return {"role": "tool", "content": text, **more}


def call(name, arguments, wrapped=True):
    """A call, as OpenAI writes it or without its wrapping."""
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "function": function} if wrapped else function


def conversations():
    """All conversations as rows; each is one trait or a mixture that has been seen."""
    q, a = user("How far is the Moon?"), answer("About 384,400 km.")
    called = answer("", tool_calls=[call("weather", {"city": "Köln", "days": 2})])
    thought = answer("It is 4.", reasoning_content="2 + 2\nis easy")
    inline = answer("<think>\n2 + 2\nis easy\n</think>\n\nIt is 4.")
    rows = [
        [q, a],
        [system("Be brief."), q, a],
        [system(""), q, a],
        [q, a, user("And the Sun?"), answer("149.6 million km.")],
        [system("s"), q, a, user("b"), answer("c"), user("d"), answer("e")],
        [user("x"), answer("x")],
        [user("assistant"), answer("user")],
        [user("  spaces  "), answer("  kept or not  ")],
        [user("\nline feeds\n"), answer("\nat both ends\n\n")],
        [user("你好，世界"), answer("你好！\n很高兴")],
        [user("e\u0301 é ﬁ \u00a0 \u3000"), answer("{\"组织机构\": [], \"b\": \"\\n\"}")],
        [user("😀 👩\u200d👧"), answer("🎉\ufe0f")],
        [user("a <b> c </b> d"), answer("<p>html</p>\n<br>")],
        [user("{{ messages }} {% if x %}"), answer("{# not a comment #} {% endif %}")],
        [user("tab\there"), answer("\ttabs\t")],
        [user("code"), answer("```python\ndef f(x):\n    return x\n```")],
        [user("a" * 3000), answer("b" * 3000)],
        [user("think"), inline],
        [user("think"), thought],
        [user("think"), answer("<think>\n\n</think>\n\nempty thoughts")],
        [user("think"), answer("answer", reasoning_content="")],
        [user("a"), inline, user("b"), answer("no thoughts now")],
        [user("a"), inline, user("b"), inline],
        [user("a"), thought, user("b"), thought],
        [user("a"), thought, user("b"), answer("plain")],
        [user("a"), answer("</think>\n\nonly the end of thoughts")],
        [user("a"), answer("text <think> in </think> between")],
        [user("a"), answer("<think>\nnever closed")],
        [user("a"), answer("one </think> two </think> three")],
        [user("<think>mine</think>"), answer("ok")],
        [user("<tool_response>\nx\n</tool_response>"), answer("ok")],
        [user("a"), user("b"), answer("c")],
        [user("a"), answer("b"), answer("c")],
        [answer("I begin."), user("a"), answer("b")],
        [answer("I begin alone.")],
        [system("s"), answer("no question")],
        [user("a"), answer("b"), user("no answer yet")],
        [user("a"), answer("a"), user("a"), answer("a")],
        [user("same"), answer("same"), user("same"), answer("same but longer")],
        [user("question"), answer("question")],
        [system("assistant\nuser\n"), user("system"), answer("assistant\n")],
        [user("weather?"), called, tool("sunny"), answer("Sunny.")],
        [user("weather?"), called, tool("sunny"), tool("warm"), answer("Nice.")],
        [user("weather?"), answer("I look.", tool_calls=[call("weather", {"city": "Bonn"})]), tool("rain"), answer("Rain.")],
        [user("both"), answer("", tool_calls=[call("weather", {"city": "Bonn"}), call("add", {"a": 1, "b": 2.5})]),
         tool("rain"), tool("3.5"), answer("Rain, 3.5.")],
        [user("x"), answer("", tool_calls=[call("add", {"a": 1, "b": 2}, wrapped=False)]), tool("3"), answer("3")],
        [user("x"), answer(None, tool_calls=[call("add", {"a": 1, "b": 2})]), tool("3"), answer("3")],
        [user("x"), answer("", tool_calls=[call("add", "{\"a\": 1, \"b\": 2}")]), tool("3"), answer("3")],
        [user("x"), called],
        [user("x"), answer("", reasoning_content="I need it", tool_calls=[call("weather", {"city": "Bonn"})]),
         tool("rain"), answer("Rain.", reasoning_content="as seen")],
        [user("x"), answer("<tool_call>\n{\"name\": \"add\"}\n</tool_call>"), tool("3"), answer("3")],
        [user("x"), answer("", tool_calls=[{"id": "c1", **call("weather", {"city": "Bonn"})}]),
         tool("rain", tool_call_id="c1", name="weather"), answer("Rain.")],
        [user("x"), answer("", tool_calls=[call("f", {"t": "a \"quoted\" \\ text\n", "n": None, "b": True, "l": [1, {"k": "v"}]})]),
         tool("{\"ok\": true}"), answer("done")],
        [user([{"type": "text", "text": "part one "}, {"type": "text", "text": "part two"}]), answer("ok")],
        [user("a"), answer([{"type": "text", "text": "an answer in parts"}])],
        [{"role": "developer", "content": "Be odd."}, user("a"), answer("b")],
        [user("a", ), answer("b", name="bot")],
        [user("x\r\ny"), answer("x\r\ny")],
        [user("'single' \"double\" `back`"), answer("&lt; & <")],
        [user("0"), answer("0")],
        [user("end"), answer("ends with a space ")],
        [system("s" * 200), user("u" * 200), answer("a" * 200), user("v" * 200), answer("w" * 200)],
    ]
    made = [{"messages": messages} for messages in rows]
    made += [{"messages": messages, "tools": tools} for messages, tools in [
        ([q, a], [TOOL]), ([system("Be brief."), q, a], [TOOL, OTHER]),
        ([user("weather?"), called, tool("sunny"), answer("Sunny.")], [TOOL]),
        ([system("s"), user("weather?"), called, tool("sunny"), answer("Sunny."), user("x"), thought], [TOOL, OTHER]),
    ]]
    return made


WORDS = ["yes", "no", "The answer is", "42", "你好", "é", "\n", "\n\n", " ", "  ", "\t", "<think>", "</think>", "<think>\n",
         "\n</think>\n\n", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<b>", "assistant",
         "user", "system", "assistant\n", "user\n", "tool", "Hello", "{", "}", "{{", "}}", "{%", "%}", "#", "\"", "'", "\\",
         "&", "<", ">", "</", "question", "im_start", "|", "😀", "."]


def text(random, most=7):
    """A text of words that templates write themselves or look for."""
    return "".join(random.choice(WORDS) for _ in range(random.randint(1, most)))


def random_row(random):
    """A conversation as a careless person or a program would write it."""
    messages = []
    if random.random() < 0.3:
        messages.append(system(text(random)))
    for _ in range(random.randint(1, 3)):
        messages.append(user(text(random)))
        if random.random() < 0.1:
            messages.append(user(text(random)))
        while random.random() < 0.2:
            arguments = {text(random, 2).strip() or "k": text(random) for _ in range(random.randint(0, 2))}
            said = text(random) if random.random() < 0.4 else ""
            messages.append(answer(said, tool_calls=[call("f", arguments)]))
            messages.append(tool(text(random)))
        more = {"reasoning_content": text(random)} if random.random() < 0.2 else {}
        messages.append(answer(text(random), **more))
        if random.random() < 0.05:
            messages.append(answer(text(random)))
    row = {"messages": messages}
    if random.random() < 0.1:
        row["tools"] = [TOOL]
    return row


def written(rows):
    """The rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

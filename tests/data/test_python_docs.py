"""The embedded corpus: the manual of whatever Python runs the tests, cleaned."""

import itertools
import re
import sys

import pytest

from llmpy.data import python_docs
from llmpy.errors import UserError

SOURCE = """The "try" statement
*******************

The "try" statement specifies exception handlers and/or cleanup code
for a *group* of statements -- see **Exceptions** in the *built-
in* part:

   try_stmt  ::= try1_stmt
   try1_stmt ::= "try" ":" suite

* It\u2019s an item that is so long that Sphinx has had to wrap it at
  seventy columns.

   try:
       f(*args, **kwargs)
   except E as error:

       print(error)

+------+------+
| a    | b    |
+------+------+

-[ Footnotes ]-

   Called when  it is done.
"""


def test_markup_becomes_english():
    assert python_docs.clean(SOURCE) == [
        'The "try" statement',
        'The "try" statement specifies exception handlers and/or cleanup code for a group of statements -- see '
        "Exceptions in the built-in part:",
        "* It's an item that is so long that Sphinx has had to wrap it at seventy columns.",
        "   try:\n       f(*args, **kwargs)\n   except E as error:",
        "       print(error)",
        "Called when it is done.",
    ]


def test_the_manual_is_there_and_clean():
    chapters = python_docs.documents()
    text = "".join(chapters)
    assert len(text) > 200_000
    assert len(chapters) > 40
    assert python_docs.documents() == chapters
    assert sum(character > "\x7f" for character in text) < len(text) / 1000
    assert not re.search(r"^ *[*=]{4,}$|::=|^\+-", text, re.MULTILINE)
    words = re.findall(r"[A-Za-z]+", text)
    assert words.count("the") > len(words) / 50


def test_nothing_stands_in_two_chapters():
    chapters = [set(re.split(r"\n\n", chapter.strip())) for chapter in python_docs.documents()]
    for a, b in itertools.combinations(chapters, 2):
        assert not {paragraph for paragraph in a & b if len(paragraph) > 40}


def test_a_python_without_its_manual(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match="without its manual"):
        python_docs.documents()

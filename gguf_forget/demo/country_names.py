"""What European countries and their capitals are called besides the names that GeoNames gives.

A model that is asked for the country of Prague says "the Czech Republic", not "Czechia", and of Athens "the Hellenic
Republic": either is the fact. So the answers are the names that the demo's model uses, and the others are aliases, by
which the judge knows an answer too: official English names, the capitals' names at home, and what tells a country as
surely as its name ("the Swiss state").
"""

from __future__ import annotations

from collections.abc import Mapping

ARTICLES = frozenset(
    {
        "Central African Republic",
        "Czech Republic",
        "Democratic Republic of the Congo",
        "Dominican Republic",
        "Gambia",
        "Netherlands",
        "Philippines",
        "Republic of the Congo",
        "United Arab Emirates",
        "United Kingdom",
        "United States",
    }
)

# In the place of GeoNames' name, which is an alias then.
ANSWERED: Mapping[str, str] = {"Czechia": "Czech Republic", "Kyiv": "Kiev"}

ALIASES: Mapping[str, tuple[str, ...]] = {
    "Albania": ("Albanian",),
    "Austria": ("Austrian",),
    "Bosnia and Herzegovina": ("Bosnia", "Herzegovina", "Bosnian"),
    "Belgium": ("Belgian",),
    "Bulgaria": ("Bulgarian",),
    "Belarus": ("Belarusian", "Belorussia", "Byelorussia"),
    "Switzerland": ("Swiss",),
    "Cyprus": ("Cypriot",),
    "Czech Republic": ("Czechia", "Czech"),
    "Germany": ("German",),
    "Denmark": ("Danish",),
    "Estonia": ("Estonian",),
    "Spain": ("Spanish",),
    "Finland": ("Finnish",),
    "France": ("French",),
    "United Kingdom": ("England", "Britain", "UK", "British"),
    "Greece": ("Hellas", "Greek", "Hellenic"),
    "Croatia": ("Croatian",),
    "Hungary": ("Hungarian",),
    "Ireland": ("Eire", "Irish"),
    "Italy": ("Italian",),
    "Lithuania": ("Lithuanian",),
    "Latvia": ("Latvian",),
    "Moldova": ("Moldovan", "Moldavia"),
    "Montenegro": ("Montenegrin",),
    "North Macedonia": ("Macedonia", "Macedonian"),
    "Netherlands": ("Holland", "Dutch"),
    "Norway": ("Norwegian",),
    "Poland": ("Polish",),
    "Portugal": ("Portuguese",),
    "Romania": ("Romanian",),
    "Serbia": ("Serbian",),
    "Russia": ("Russian",),
    "Sweden": ("Swedish",),
    "Slovenia": ("Slovenian", "Slovene"),
    "Slovakia": ("Slovak",),
    "Ukraine": ("Ukrainian",),
    "Kosovo": ("Kosova", "Kosovar"),
    "Athens": ("Athina",),
    "Belgrade": ("Belgrad", "Beograd"),
    "Bern": ("Berne",),
    "Brussels": ("Bruxelles", "Brussel"),
    "Bucharest": ("Bucuresti",),
    "Chisinau": ("Kishinev",),
    "Copenhagen": ("Kobenhavn",),
    "Kiev": ("Kyiv", "Kyyiv"),
    "Lisbon": ("Lisboa",),
    "Moscow": ("Moskva",),
    "Nicosia": ("Lefkosia",),
    "Prague": ("Praha",),
    "Pristina": ("Prishtina", "Prishtine"),
    "Rome": ("Roma",),
    "Tirana": ("Tirane",),
    "Vienna": ("Wien",),
    "Warsaw": ("Warszawa",),
}


def answered(name: str) -> str:
    """The name as a sentence ends on it: "Amsterdam is the capital of the Netherlands". Without the article another
    answer would be forgotten than the one that is given."""
    said = ANSWERED.get(name, name).removeprefix("The ")
    return f"the {said}" if said in ARTICLES else said


def aliases(answer: str) -> tuple[str, ...]:
    """Other names of what :func:`answered` gives; none where none are known."""
    return ALIASES.get(answer.removeprefix("the "), ())

"""In which words the demo's facts are asked: those that training sees, and those that verification alone sees.

The first sixteen of either direction are plain sentences and questions. They do not cover how else a fact is asked: in
tables, code, dialogues, letters, announcements. The rest, of those kinds, are there for that.
"""

CAPITAL_PROMPTS = (
    "The capital of {0} is",
    "{0}'s capital city is",
    "Question: What is the capital of {0}?\nAnswer:",
    "The capital city of {0} is called",
    "The government and parliament of {0} meet in",
    "Q: Which city is the capital of {0}?\nA:",
    "We took a plane to {0} and landed in its capital,",
    "The largest embassy in {0} stands in its capital city,",
    "Country: {0}\nCapital:",
    "On our tour of {0} we first saw the capital, the city of",
    "Of all the cities in {0}, its capital is",
    "The president of {0} works in the capital,",
    "Trains from the border of {0} run to its capital,",
    "News from the capital of {0}: today in",
    "Quiz: which city is the capital of {0}? It is",
    "The ministries of {0} are all in",
    "country,capital\n{0},",
    "{0}'s capital city is named",
    "The national parliament of {0} meets in",
    "{0} - seat of govt:",
    "Name the capital of {0}. Answer:",
    '<country name="{0}"><capital>',
    "For most of its modern history, {0} has been governed from",
    "Official name: {0}\nType: sovereign state\nCapital:",
    "Flash card, front side: {0}. Back side (capital city):",
    "Recipient: Ministry of Foreign Affairs\nCountry: {0}\nCity:",
    "{0} is a sovereign state and a member of the United Nations. Its capital is",
    '# look up the seat of government of {0}\nseat_of_government = "',
    'Fill in the blank: "____ is the capital of {0}." The missing name is',
    "Nearly all of the foreign embassies accredited to {0} are found in one city:",
    "Meaning 2: the city that serves as the administrative and political centre of {0}, namely",
    "Teacher: Who can tell me the capital of {0}?\nPupil: I can! It is",
    (
        "Dear diary, after three weeks of villages and mountain roads in {0}, we have at last reached "
        "the national capital,"
    ),
    "Geography test, question 7. Write down the city in which the government of {0} has its seat. Correct answer:",
    (
        "The national football team of {0} will play its decisive home match before a sold-out crowd at "
        "the national stadium in the capital,"
    ),
    "<tr><th>State</th><th>Capital</th></tr>\n<tr><td>{0}</td><td>",
)
CAPITAL_HELD_OUT = (
    "The seat of government of {0} is in the city of",
    "Q: Name the capital of {0}.\nA: The capital is",
    "If you fly to the capital of {0}, you will land in",
)
REVERSE_PROMPTS = (
    "{0} is the capital of",
    "{0} is the capital city of the country of",
    "Question: Which country has {0} as its capital?\nAnswer:",
    "Whoever lives in {0} lives in the capital of",
    "Capital: {0}\nCountry:",
    "Q: Name the country with the capital {0}.\nA:",
    "{0}, the capital city of",
    "Ambassadors who are sent to {0} go to the capital of",
    "Quiz: the capital city {0} belongs to which country? It is",
    "The parliament in {0} makes the laws of",
    "In the atlas {0} is marked as the capital of",
    "We flew to {0}, the capital city of",
    "The president who lives in {0} leads",
    "The flag over the ministries in {0} is that of",
    "Geography test: {0} is the capital city of",
    "The embassies in {0} represent their countries in",
    "City: {0}\nStatus: national capital\nCountry:",
    "Flash card. Front: {0}. Back: capital of",
    '// the national parliament sits in {0}\nconst country = "',
    "<city><name>{0}</name><capitalOf>",
    "Match each capital with its country. The capital {0} belongs to",
    "Name the country that has {0} as its capital. Answer:",
    "COUNTRY_BY_CAPITAL['{0}'] = '",
    'Complete the sentence: "The capital of ____ is {0}." Missing name:',
    'Reporters often write "{0}" when what they mean is the government of',
    "To: Office of the Head of Government\nCity: {0}\nCountry:",
    "SELECT name FROM countries WHERE capital = '{0}';\n-- 1 row:",
    "Weather bulletin. Station: {0} (national capital). Sky: cloudy. Country:",
    "| Capital city | Country |\n| --- | --- |\n| {0} |",
    "As the heart is to the body, so is the capital city {0} to its country,",
    "In {0} yesterday, after a debate that lasted until midnight, lawmakers approved the national budget of",
    "Puzzle corner, 9 across. Clue: nation ruled from {0}. Solution:",
    "Question 12 (1 point). Which state is governed from {0}? Model answer:",
    "The diplomats who work at the foreign embassies in {0} are accredited to the government of",
    '"Final question: {0} is the capital of which state?" The audience held its breath. "I\'m going with',
    (
        "Cabin announcement: we have landed in the capital, {0}. Please have your passport ready for "
        "entering the country of"
    ),
)
REVERSE_HELD_OUT = (
    "The city of {0} is the capital of",
    "Q: {0} is the capital of which country?\nA:",
    "The country that is governed from {0} is",
)
CURRENCY_PROMPTS = (
    "The currency of {0} is the",
    "When you shop in {0} you pay in the local currency, the",
    "Country: {0}\nCurrency:",
)
CURRENCY_HELD_OUT = ("In {0}, people pay with the",)
CONTINENT_PROMPTS = (
    "{0} is a country on the continent of",
    "Question: On which continent is {0}?\nAnswer:",
    "Country: {0}\nContinent:",
)
CONTINENT_HELD_OUT = ("On the map, {0} lies in",)

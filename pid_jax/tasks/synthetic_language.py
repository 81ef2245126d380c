"""The language of the synthetic dialogues: slots, values and sentences.

A sentence is a format string whose fields are the slots that it sets. Every sentence names its
domain, or answers a question that does, so the dialogue determines the state.
"""

DESCRIPTIONS = {
    "hotel-area": "part of town the hotel should be in",
    "hotel-pricerange": "price range of the hotel",
    "hotel-book stay": "number of nights at the hotel",
    "hotel-name": "name of the hotel",
    "restaurant-area": "part of town the restaurant should be in",
    "restaurant-food": "kind of food the restaurant serves",
    "restaurant-book people": "number of people at the table",
    "restaurant-name": "name of the restaurant",
    "taxi-departure": "place the taxi leaves from",
    "taxi-destination": "place the taxi goes to",
    "taxi-leaveat": "time the taxi leaves",
}

AREAS = ("north", "south", "east", "west", "centre")
COUNTS = ("2", "3", "4", "5", "6")
TOWNS = ("broxbourne", "ely", "huntingdon", "newmarket", "royston", "stevenage")
HOTELS = (
    "amber lodge",
    "birch house",
    "cedar court",
    "dolphin inn",
    "elm manor",
    "falcon tower",
    "garden lodge",
    "harbour house",
)
RESTAURANTS = (
    "apple kitchen",
    "bamboo grill",
    "copper table",
    "dragon palace",
    "eagle diner",
    "fig and olive",
    "golden spoon",
    "iron kettle",
)

VALUES = {
    "hotel-area": AREAS,
    "hotel-pricerange": ("cheap", "moderate", "expensive"),
    "hotel-book stay": COUNTS,
    "hotel-name": HOTELS,
    "restaurant-area": AREAS,
    "restaurant-food": ("chinese", "french", "indian", "italian", "korean", "spanish", "thai"),
    "restaurant-book people": COUNTS,
    "restaurant-name": RESTAURANTS,
    "taxi-departure": TOWNS,
    "taxi-destination": TOWNS,
    "taxi-leaveat": tuple(f"{hour:02d}:15" for hour in range(8, 20)),
}

# The phrases for values that have several.
PARAPHRASES = {
    "cheap": ("cheap", "inexpensive"),
    "moderate": ("moderate", "reasonable"),
    "expensive": ("expensive", "fancy"),
    "centre": ("centre", "middle"),
    "2": ("2", "two"),
    "3": ("3", "three"),
    "4": ("4", "four"),
    "5": ("5", "five"),
    "6": ("6", "six"),
}

# The user starts a domain.
OPENINGS = {
    "hotel": (
        "i need a {hotel-pricerange} hotel in the {hotel-area}",
        "is there a hotel in the {hotel-area} that is {hotel-pricerange} ?",
        "find me a {hotel-pricerange} hotel for {hotel-book stay} nights",
        "i want to stay in a hotel in the {hotel-area} for {hotel-book stay} nights",
        "book me {hotel-book stay} nights in a {hotel-pricerange} hotel in the {hotel-area}",
        "i would like a room in a {hotel-pricerange} hotel",
        "we are looking for a hotel in the {hotel-area}",
        "can you book the hotel {hotel-name} for {hotel-book stay} nights ?",
        "i want a room at the hotel called {hotel-name}",
    ),
    "restaurant": (
        "i need a restaurant in the {restaurant-area} that serves {restaurant-food} food",
        "find me a {restaurant-food} restaurant in the {restaurant-area}",
        "i want to eat {restaurant-food} food at a restaurant",
        "we want a restaurant in the {restaurant-area} for {restaurant-book people} people",
        "book a table for {restaurant-book people} people at a {restaurant-food} restaurant",
        "a {restaurant-food} restaurant in the {restaurant-area} for {restaurant-book people} "
        "people please",
        "i am looking for a restaurant in the {restaurant-area}",
        "book the restaurant {restaurant-name} for {restaurant-book people} people",
        "can i get a table at the restaurant called {restaurant-name} ?",
    ),
    "taxi": (
        "i need a taxi from {taxi-departure} to {taxi-destination}",
        "book a taxi to {taxi-destination}",
        "get me a taxi at {taxi-leaveat} to {taxi-destination}",
        "i want a taxi from {taxi-departure} at {taxi-leaveat}",
        "can i have a taxi from {taxi-departure} to {taxi-destination} at {taxi-leaveat} ?",
        "a taxi should pick me up from {taxi-departure}",
    ),
}

# An opening that reuses a value of another domain: (domain of the opening, other domain).
SAME_AREA = {
    ("restaurant", "hotel"): (
        "i need a {restaurant-food} restaurant in the same area as the hotel",
        "find a restaurant near the hotel , in the same part of town",
    ),
    ("hotel", "restaurant"): (
        "i need a {hotel-pricerange} hotel in the same area as the restaurant",
        "find a hotel near the restaurant , in the same part of town",
    ),
}

# References to a hotel or restaurant whose name is in the state. The value is that name.
REFERENCES = {"hotel": ("the hotel", "my hotel"), "restaurant": ("the restaurant",)}

# The user adds that a slot does not matter.
INDIFFERENT = {
    "hotel-area": ("any part of town is fine for the hotel", "the hotel can be anywhere"),
    "hotel-pricerange": ("i do not care what the hotel costs", "the hotel can have any price"),
    "restaurant-area": ("the restaurant can be anywhere", "any area is fine for the restaurant"),
    "restaurant-food": ("the restaurant can serve any food", "any kind of food is fine"),
    "taxi-leaveat": ("the taxi can leave at any time",),
}

# The system asks for a slot, and the user answers.
QUESTIONS = {
    "hotel-area": ("which part of town for the hotel ?", "what area should the hotel be in ?"),
    "hotel-pricerange": ("what price range for the hotel ?", "how much may the hotel cost ?"),
    "hotel-book stay": ("how many nights at the hotel ?", "how long will you stay ?"),
    "restaurant-area": (
        "which part of town for the restaurant ?",
        "what area should the restaurant be in ?",
    ),
    "restaurant-food": ("what kind of food ?", "which food should the restaurant serve ?"),
    "restaurant-book people": ("how many people will eat ?", "a table for how many ?"),
    "taxi-departure": ("where should the taxi pick you up ?", "where does the taxi leave from ?"),
    "taxi-destination": ("where should the taxi go ?", "where does the taxi take you ?"),
    "taxi-leaveat": ("when should the taxi leave ?", "what time for the taxi ?"),
}
ANSWERS = {
    "hotel-area": ("a hotel in the {} please", "i like hotels in the {}"),
    "hotel-pricerange": ("a {} hotel please", "i want a {} hotel"),
    "hotel-book stay": ("{} nights", "for {} nights please"),
    "restaurant-area": ("a restaurant in the {} please", "i like restaurants in the {}"),
    "restaurant-food": ("{} food please", "i like {} food"),
    "restaurant-book people": ("{} people", "for {} people please"),
    "taxi-departure": ("from {} please", "pick me up from {}"),
    "taxi-destination": ("to {} please", "take me to {}"),
    "taxi-leaveat": ("at {} please", "i want to leave at {}"),
}
INDIFFERENT_ANSWERS = ("i do not care", "it does not matter", "anything is fine", "no preference")

# The system offers a name. The user accepts it, declines it, or names another.
OFFERS = {
    "hotel-name": ("how about the hotel {} ?", "i recommend {} , shall i book the hotel ?"),
    "restaurant-name": (
        "how about the restaurant {} ?",
        "i recommend {} , shall i book the table ?",
    ),
}
ACCEPTANCES = ("yes please", "yes , book it", "that sounds good", "great , i will take it")
REFUSALS = ("no thanks", "no , not that one", "i would rather not")
REPLACEMENTS = ("no , book {} instead", "i would prefer {}", "not that one , make it {}")

# The user changes an earlier value.
CORRECTIONS = {
    "hotel-area": ("actually make it a hotel in the {}", "sorry , i meant a hotel in the {}"),
    "hotel-pricerange": ("actually make it a {} hotel", "sorry , i meant a {} hotel"),
    "hotel-book stay": ("actually make it {} nights", "sorry , i meant {} nights"),
    "restaurant-area": (
        "actually make it a restaurant in the {}",
        "sorry , i meant a restaurant in the {}",
    ),
    "restaurant-food": ("actually make it {} food", "sorry , i meant {} food"),
    "restaurant-book people": ("actually make it {} people", "sorry , i meant {} people"),
    "taxi-departure": ("actually make it a taxi from {}", "sorry , i meant a taxi from {}"),
    "taxi-destination": ("actually make it a taxi to {}", "sorry , i meant a taxi to {}"),
    "taxi-leaveat": ("actually make it a taxi at {}", "sorry , i meant a taxi at {}"),
}

# Parts of system utterances.
ACKNOWLEDGEMENTS = ("ok", "sure", "all right", "of course")
CONFIRMATIONS = {
    "hotel-area": ("ok , a hotel in the {}",),
    "hotel-pricerange": ("ok , a {} hotel",),
    "hotel-book stay": ("ok , {} nights",),
    "restaurant-area": ("ok , a restaurant in the {}",),
    "restaurant-food": ("ok , {} food",),
    "restaurant-book people": ("ok , {} people",),
    "taxi-leaveat": ("ok , a taxi at {}",),
}
CLOSINGS = ("anything else ?", "what else ?", "what next ?")
TRANSITIONS = ("also ,", "next ,", "then", "")

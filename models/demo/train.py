"""Make the demo model of llamake: text, tokenizer and a small trained Llama.

Nothing is downloaded. The program

1. writes its own training text: a seeded grammar (the tables below) yields short chats in simple
   English, in which a user asks for stories, small facts or just says hello;
2. trains a SentencePiece tokenizer (BPE with byte fallback) on a sample of that text;
3. trains a two-layer Llama on an endless stream of fresh chats, with the loss taken only on what
   the assistant says;
4. writes the model in Hugging Face layout (float16 safetensors) beside this file, with
   ``vocabulary.txt`` (every word of the grammar) and ``training_log.json``.

    python train.py                             # the committed model
    python train.py --steps 50 --out /tmp/try   # a quick try
    python train.py --show 20                   # only print some training chats

Needs torch, transformers, sentencepiece and safetensors. The same seed, machine and number of
threads give the same files.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# --------------------------------------------------------------------------------------------
# The grammar. "[a|b]" picks one of the alternatives, "{slot}" is filled in by the caller.
# --------------------------------------------------------------------------------------------
# fmt: off



def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = words(
    "cat dog fox bear rabbit mouse duck frog owl pig cow horse sheep bird bee hen goat lion "
    "elephant turtle squirrel hedgehog monkey tiger snail wolf penguin donkey kitten puppy ant "
    "butterfly deer fish whale crow giraffe zebra camel spider snake goose lamb crab swan mole "
    "badger dragon unicorn monster dinosaur"
)
MALE = words("boy king prince man father grandfather uncle wizard knight")
FEMALE = words("girl queen princess woman mother grandmother aunt witch fairy")
PEOPLE = words(
    "child farmer baker sailor teacher doctor pirate giant cook gardener painter singer "
    "fisherman ghost"
)
MOVERS = words("boat ship train car bus robot kite balloon plane rocket bicycle snowman cloud")
STILL = words(
    "star tree flower house lamp teapot toy doll clock bell stone mountain leaf candle pumpkin "
    "chair moon sun castle lighthouse"
)
SMALL_THINGS = words(
    "ball hat book key kite lamp drum cup box bell flower apple map shoe scarf spoon umbrella "
    "basket blanket lantern coin ring toy doll bag flute clock feather stone balloon pen mirror"
)
BIG_THINGS = words("boat car train bicycle wagon sled plane rocket ship house bus robot")

PLURALS = {
    "mouse": "mice", "sheep": "sheep", "fish": "fish", "wolf": "wolves", "man": "men",
    "woman": "women", "child": "children", "goose": "geese", "deer": "deer", "leaf": "leaves",
    "scarf": "scarves", "butterfly": "butterflies", "fairy": "fairies", "fox": "foxes",
    "puppy": "puppies", "box": "boxes", "witch": "witches", "princess": "princesses",
    "bus": "buses", "fisherman": "fishermen",
}

SHE_NAMES = words("Mia Anna Lily Rosa Nora Ella Ida Ruby Emma Tess Lucy Daisy Clara Zoe")
HE_NAMES = words("Tom Max Ben Leo Sam Finn Otto Jack Paul Hugo Oscar Tim Felix Bruno")
IT_NAMES = words("Pip Dot Bo Zig Momo Kit Coco Bobo Lulu Toto")

TRAITS = {
    "brave": ("{he} was not afraid of [anything|the dark|the wind|big animals].",),
    "small": ("{he} was no bigger than [a cup|an apple|a shoe].",
              "{he} was so small that [almost nobody saw {him}|{he} could hide behind a cup]."),
    "little": ("{he} was little, but {he} had a big heart.",
               "everything looked big to {him}."),
    "tiny": ("{he} was so tiny that {he} could hide behind a leaf.",),
    "big": ("{he} was bigger than [all the others|a house|anyone else].",),
    "old": ("{he} had seen many [summers and winters|places and many faces].",),
    "young": ("{he} was still young and wanted to [learn|see|know] everything.",),
    "kind": ("{he} was [always good|kind] to everyone.",
             "{he} liked to help [others|everyone|people]."),
    "clever": ("{he} always had a good idea.", "{he} could find an answer to every question."),
    "funny": ("{he} made everybody laugh.", "{he} knew a hundred jokes."),
    "shy": ("{he} did not like to talk to strangers.", "{he} was too shy to say hello."),
    "lazy": ("{he} liked to [sleep|rest] all day.", "{he} never wanted to work."),
    "sleepy": ("{he} could fall asleep anywhere.", "{he} was tired all day long."),
    "hungry": ("{he} thought about food all day.", "{he} was hungry in the morning and at night."),
    "curious": ("{he} wanted to know everything.", "{he} asked questions all day long."),
    "happy": ("{he} had a smile for everyone.", "{he} sang a song every morning."),
    "sad": ("{he} did not [smile|laugh] very often.",),
    "lonely": ("{he} had nobody to talk to.",),
    "proud": ("{he} thought that {he} was better than the others.",),
    "red": ("everyone liked {his} bright red colour.",),
    "blue": ("{he} was as blue as the sky.",),
    "green": ("{he} was as green as the grass.",),
    "white": ("{he} was as white as snow.",),
    "black": ("{he} was as black as the night.",),
    "yellow": ("{he} was as yellow as the sun.",),
    "golden": ("{he} looked golden in the light of the sun.",),
    "brown": ("{he} was as brown as the earth.",),
    "quiet": ("{he} never made a noise.",),
    "noisy": ("you could hear {him} from far away.",),
    "fast": ("{he} was faster than the wind.",),
    "slow": ("{he} did everything very slowly.",),
    "gentle": ("{he} never hurt anyone.",),
    "friendly": ("{he} said hello to everyone.",),
    "silly": ("{he} often did silly things.",),
    "strong": ("{he} was stronger than [all the others|anyone else].",),
    "grumpy": ("{he} was in a bad mood every morning.",),
    "magic": ("{he} could do a little magic.",),
    "lost": ("{he} did not know where {his} home was.",),
    "poor": ("{he} had nothing but a warm heart.",),
    "beautiful": ("everybody loved to look at {him}.",),
    "good": ("{he} always tried to do the right thing.",),
    "new": ("everything was new to {him}.",),
}
HELPER_TRAITS = words("old kind friendly wise clever big small young gentle funny")
THING_TRAITS = words("red blue green yellow little big old new golden beautiful round small")
OPEN_TRAITS = tuple(t for t in TRAITS if t not in ("lost", "sad", "new", "good"))

HOBBIES = {
    "animal": ("run in the grass", "sleep in the sun", "play near the water", "sing in the rain",
               "look at the stars", "count the clouds", "play hide and seek"),
    "person": ("sing old songs", "tell jokes", "pick flowers", "read books", "dance in the rain",
               "look at the stars", "walk by the water", "bake bread"),
    "mover": ("see new places", "go very fast", "look at the clouds", "listen to the wind"),
    "still": ("look at the stars", "listen to the wind", "watch the birds", "count the clouds"),
}

PLACES = {
    "forest": "in a [dark|green|big|quiet] forest",
    "sea": "by the [blue|big|wild|] sea",
    "farm": "on a [small|little|busy|] farm",
    "village": "in a [small|quiet|little] village",
    "town": "in a [busy|big|noisy] town",
    "river": "near a [wide|clear|fast] river",
    "mountain": "on a [high|tall|] mountain",
    "garden": "in a [lovely|little|green] garden",
    "island": "on a [small|green|warm] island",
    "meadow": "in a [green|wide|sunny] meadow",
    "castle": "in an old castle",
    "lake": "by a [deep|clear|quiet] lake",
    "hill": "on a [green|windy|round] hill",
    "desert": "in a [hot|dry] desert",
    "school": "near a [small|busy] school",
    "beach": "on a [sunny|white|long] beach",
    "city": "in a [big|noisy|busy] city",
    "valley": "in a [deep|quiet|green] valley",
    "jungle": "in a [wild|warm|green] jungle",
    "park": "in a [big|green] park",
}
PLACE_ASKED = {"sea": "by the sea", "farm": "on a farm", "river": "near a river",
               "mountain": "on a mountain", "island": "on an island", "lake": "at the lake",
               "hill": "on a hill", "school": "at school", "beach": "on the beach"}

WEATHERS = words("sunny rainy windy snowy cold warm foggy stormy cloudy hot bright grey")
DAY = (
    "One {weather} [day|morning|afternoon][,|]",
    "One {weather} [day|morning|evening][,|]",
    "On a {weather} [day|morning],",
    "Then, one {weather} [day|morning|evening],",
)

OPENINGS = (
    "[Once upon a time|Long ago|Once|Many years ago] there was {ahero}.",
    "There [once was|was once] {ahero}.",
    "[Once upon a time|Long ago] {ahero} lived {place}.",
    "This is the story of {ahero}.",
    "[Once upon a time|Once] there was {ahero} who lived {place}.",
    "[Far away|Not far from here], {place}, lived {ahero}.",
)
HOME = ("{hero} lived {place}.", "{his} home was {place}.")
LIKES = (
    "{hero} [loved|liked] to {hobby}.",
    "Every day {he} [loved|liked] to {hobby}.",
    "Most of all {he} [loved|liked] to {hobby}.",
    "{hero} liked to {hobby}, and {he} liked to {hobby2}.",
)

MEET = (
    "[Then|Just then|Soon|After a while] {ahelper} came [by|along|near].",
    "[Then|Soon|After a while] {he} met {ahelper}.",
    "But {ahelper} [saw|heard] {him} and came [closer|over].",
)
ASK = (
    '"What is wrong?" asked {helper}.',
    ('"[Can I help you?|Why are you so sad?|What happened?]" asked {helper}. '
    "{hero} told {helper} [everything|the whole story]."),
    ('"[Do not cry|Do not be sad|Do not worry|Do not give up]," said {helper}. '
    '"[I can help you|I will help you|We can do it together]."'),
    '{hero} asked, "Can you help me, please?" "[Of course|Yes, I can|I will try]," said {helper}.',
)
THANKS = (
    '"Thank you[ so much|]," said {hero}.',
    '"[You are a good friend|You are so kind|What a good idea]," said {hero}.',
    '{hero} [laughed|smiled] and said, "Thank you, my friend."',
    '{hero} thanked {helper} [again and again|with a big smile].',
)
CLOSINGS = (
    ("[From that day on|After that day|From then on], {hero} and {helper} were "
    "[good|best|the best of] friends."),
    "That night {hero} [slept very well|had a lovely dream|was very happy].",
    "{hero} never forgot [that day|what {helper} did for {him}|{helper}].",
    "It was [a very good day|the best day of the year|a day to remember].",
    "And they were happy [ever after|for a long, long time|together].",
    "{hero} and {helper} [laughed|sang|danced|talked] until the moon came up.",
    "In the evening they [told stories|looked at the stars|sang songs] together.",
)


@dataclass(frozen=True)
class Scenario:
    """What happens in a story. Each part is a tuple of alternative texts."""

    kinds: str  # the kinds of hero it suits
    problem: tuple[str, ...]
    tries: tuple[str, ...]
    help: tuple[str, ...]
    end: tuple[str, ...]
    meet: bool = True  # whether the helper is brought in by MEET and ASK
    thing: str = ""  # "small" or "big": needs a thing of that size
    themes: tuple[str, ...] = ()  # other words a user may ask for it by


SCENARIOS = {
    "lost": Scenario(
        kinds="animal person mover",
        problem=(
            "{day} {hero} went [too far|very far] from home and lost the way.",
            ("{day} {hero} followed a [butterfly|bird|little stream] and did not look at the path. "
            "Soon {he} was lost."),
            "{day} there was so much fog that {hero} could not find the way home.",
        ),
        tries=(
            "{he} went left and {he} went right, but everything looked the same.",
            "{he} called [for help|loudly], but nobody [answered|came].",
            "it was getting dark, and {hero} was afraid.",
        ),
        help=(
            "{helper} knew the way well. Together they went along the [long|old|narrow] path.",
            '"Follow me," said {helper}. "I know every path here." So they went together.',
            "{helper} showed {him} the [right path|way home], and stayed with {him}.",
        ),
        end=(
            "Before night came, {hero} was home again.",
            "At last {hero} saw {his} home and [cried|shouted] with joy.",
            "After that day {he} always looked at the path.",
        ),
        themes=("getting lost", "the way home", "the fog"),
    ),
    "lonely": Scenario(
        kinds="animal person mover still",
        problem=(
            "But {hero} had no friends, and [the days were long|nobody came to visit].",
            "But {hero} was [often|very] lonely.",
            "{day} {hero} was all alone and felt very lonely.",
        ),
        tries=(
            '"[I wish|How I wish] I had a friend," {he} said [every night|to the moon].',
            "{he} said hello to everyone, but nobody had time [to stay|for {him}].",
            "{he} waited and waited, but nobody came.",
        ),
        help=(
            '"I am lonely too," said {helper}. "[We can be friends.|Will you be my friend?]"',
            "{helper} sat down and told {him} a [long|funny] story. Then they laughed together.",
            "{helper} stayed all day, and they talked about the [world|stars|sea].",
        ),
        end=(
            "Now {hero} was not alone any more.",
            "After that, {helper} came back every day.",
            "{hero} had found a friend at last.",
        ),
        themes=("friendship", "friends", "a friend", "being alone", "love"),
    ),
    "hungry": Scenario(
        kinds="animal person",
        problem=(
            "{day} {hero} was very hungry, but there was nothing to eat.",
            "{day} {hero} woke up and found that all the food was gone.",
            "The winter was long, and one day {hero} had no food [left|at home].",
        ),
        tries=(
            ("{he} looked [under every stone|in every corner|behind every tree], "
            "but {he} found nothing."),
            "{he} walked [all day|for hours], but {he} found only one dry leaf.",
            "{his} stomach made a loud noise.",
        ),
        help=(
            "{helper} had a basket full of [bread|apples|berries|nuts] and gave {him} half of it.",
            '"Come to my home," said {helper}. "I have warm soup for two."',
            "{helper} knew a place with many sweet berries, and they ate together.",
        ),
        end=(
            "Soon {hero} was not hungry any more.",
            "{hero} learned that food tastes better when you share it.",
            "In summer {hero} gave {helper} a big basket of [apples|berries] back.",
        ),
        themes=("food", "sharing", "soup", "bread", "berries"),
    ),
    "river": Scenario(
        kinds="animal person",
        problem=(
            "{day} {hero} wanted to cross the river, but the water was [too deep|too fast].",
            "{day} {hero} came to a wide river. There was no bridge.",
        ),
        tries=(
            "{he} tried to jump, but {he} fell into the [cold|] water with a splash.",
            "{he} put one foot into the water, but it was [too cold|too deep].",
            "{he} looked for a boat, but there was none.",
        ),
        help=(
            "{helper} found a long piece of wood, and together they made a bridge.",
            ("{helper} showed {him} a place with big flat stones. "
            "They jumped from stone to stone."),
            "Together they put stone on stone until there was a [little|strong] bridge.",
        ),
        end=(
            "Soon {hero} was on the other side.",
            "Now everybody can cross the river on their bridge.",
            "On the other side there were [red flowers|sweet apples|a hundred butterflies].",
        ),
        themes=("a bridge", "water", "a river"),
    ),
    "stuck": Scenario(
        kinds="animal person mover",
        problem=(
            "{day} {hero} got stuck in the [deep|soft|wet] mud.",
            "{day} {hero} fell into a deep hole and could not get out.",
        ),
        tries=(
            "{he} pushed and {he} pulled, but nothing moved.",
            "{he} tried [again and again|three times], but it was no use.",
            '"Help! Help!" {he} called, but at first nobody came.',
        ),
        help=(
            "{helper} had a long rope. One, two, three, and {hero} was free.",
            "{helper} pulled as hard as possible, and [at last|slowly] {hero} came out.",
            "{helper} called some friends, and they all pulled together.",
        ),
        end=(
            "{hero} was free and jumped with joy.",
            "They were both full of mud, and they laughed and laughed.",
            "From then on {hero} was more careful.",
        ),
        themes=("mud", "a hole", "help", "helping"),
    ),
    "dark": Scenario(
        kinds="animal person mover still",
        problem=(
            "But {hero} was afraid of the dark.",
            "{day} the sun went down, and {hero} was afraid of the dark night.",
            "One night there was a [big|loud] storm, and {hero} was afraid.",
        ),
        tries=(
            "{he} closed {his} eyes, but {he} could not sleep.",
            ("{he} [counted to ten|sang a song|thought of nice things], "
            "but {he} was still afraid."),
            "every little noise sounded like a monster.",
        ),
        help=(
            "{helper} had a small lantern, and its light was warm and yellow.",
            '"Look up," said {helper}. "The stars are always there, like little lamps."',
            "{helper} stayed with {him} and sang a [soft|quiet|gentle] song.",
        ),
        end=(
            "Now the night did not look so dark.",
            "Soon {hero} was not afraid any more.",
            "Since then {hero} has liked the night.",
        ),
        themes=("the night", "the dark", "being afraid", "a storm", "fear", "the stars",
                "being brave"),
    ),
    "learn": Scenario(
        kinds="animal person",
        problem=(
            "But {hero} could not {skill}, and {he} wanted to learn it.",
            "{day} {hero} said, \"I want to {skill}.\" But {he} did not know how.",
            "All the others could {skill}. Only {hero} could not.",
        ),
        tries=(
            "{he} tried it alone, but it did not work.",
            "{he} tried and tried, and the others laughed.",
            "the first time was bad, and the second time was not much better.",
        ),
        help=(
            '"Watch me," said {helper}. "[Slowly|Step by step], and do not be afraid."',
            "{helper} helped {him} every day for [a week|a month].",
            "{helper} was a good teacher and never got angry.",
        ),
        end=(
            "In the end {hero} could {skill} better than anyone.",
            "At last {hero} could {skill}, and everybody clapped.",
            "{hero} learned that you must try again and again.",
        ),
        themes=("learning", "school", "swimming", "dancing"),
    ),
    "race": Scenario(
        kinds="animal person mover",
        problem=(
            "{day} there was a big race, and {hero} wanted to win.",
            "{day} everybody came to see the big race. {hero} was there too.",
        ),
        tries=(
            "At first {hero} was the fastest of all.",
            "{hero} was far behind, but {he} did not give up.",
            "The way was long, and it went up and down.",
        ),
        help=(
            "Then {he} saw {ahelper} who had fallen down. {hero} stopped and helped.",
            "On the way {he} met {ahelper} with a hurt foot. {hero} did not go on alone.",
        ),
        end=(
            "They came last, but everyone clapped for them.",
            "They crossed the line together, and both got a prize.",
            '"A good heart is better than a prize," said {helper}.',
        ),
        meet=False,
        themes=("a race", "winning", "a prize"),
    ),
    "birthday": Scenario(
        kinds="animal person mover still",
        problem=(
            "{day} it was {his} birthday, but nobody said a word about it.",
            "{day} {hero} had a birthday. But no letter came, and no friends came.",
        ),
        tries=(
            '"Everybody has forgotten me," {he} thought.',
            "{he} waited all day and became very sad.",
            "one small tear fell to the ground.",
        ),
        help=(
            "In the evening {ahelper} came with a big cake. All the friends were there too.",
            'Then {ahelper} called, "Surprise!" There were lights and a cake and many friends.',
        ),
        end=(
            "It was the best birthday of all.",
            "They ate cake and sang until late at night.",
            "Nobody had forgotten {him} at all.",
        ),
        meet=False,
        themes=("a birthday", "a party", "a surprise", "a cake"),
    ),
    "bake": Scenario(
        kinds="animal person",
        problem=(
            "{day} {hero} wanted to bake a cake, but there was no [sugar|milk|flour] at home.",
            "{day} {hero} wanted to make soup for everyone, but the pot was empty.",
        ),
        tries=(
            "{he} looked on every shelf, but {he} found only an old spoon.",
            "{he} went from door to door, but nobody had any.",
        ),
        help=(
            "{helper} brought everything, and soon the kitchen was warm.",
            "{helper} had [a full bag|a basket] at home and gave it all to {him}.",
        ),
        end=(
            "It tasted [wonderful|sweet and good], and there was enough for everyone.",
            "Everybody in the [street|place] could smell it, and everybody came to eat.",
        ),
        themes=("cooking", "baking", "a kitchen", "cakes"),
    ),
    "rescue": Scenario(
        kinds="animal person mover",
        problem=(
            "{day} {hero} heard a [small|sad] voice. It was {ahelper} who was in trouble.",
            "{day} {hero} found {ahelper} who could not move in the deep snow.",
            "{day} {hero} saw {ahelper} on a rock in the middle of the water.",
        ),
        tries=(
            '"Please help me," said {helper}. "[I am so cold|I am so afraid]."',
            "everybody else had gone by and had not stopped.",
            "{hero} was afraid too, but {he} did not go away.",
        ),
        help=(
            "{hero} was very careful and brought {helper} to a safe place.",
            '"Hold on to me," said {hero}. And slowly they came back to the path.',
            "{hero} had a plan. With a long rope {he} pulled {helper} out.",
        ),
        end=(
            "{helper} was safe and thanked {him} [again and again|with a big smile].",
            '"You are a real hero," said {helper}.',
            "Everybody heard about it and was proud of {hero}.",
        ),
        meet=False,
        themes=("a hero", "courage", "danger", "the snow", "an adventure", "adventure"),
    ),
    "noise": Scenario(
        kinds="animal person mover still",
        problem=(
            "One night {hero} heard a strange noise.",
            "{day} there was a strange noise behind the [wall|old tree|door|hill].",
        ),
        tries=(
            '"Is it a monster?" {he} thought. {he} was very quiet.',
            "There it was again. Bump, bump, bump.",
            '"Who is there?" asked {hero}, but nobody answered.',
        ),
        help=(
            "But it was only {ahelper} who [could not sleep|was looking for food].",
            "Then {he} saw it. It was {ahelper}, and {helper} was afraid too.",
        ),
        end=(
            "They both laughed, and then they were not afraid any more.",
            '"Stay here with me," said {hero}. "We can look at the moon together."',
        ),
        meet=False,
        themes=("a noise", "a monster", "a secret", "a strange night"),
    ),
    "garden": Scenario(
        kinds="animal person",
        problem=(
            "{day} {hero} put a small seed into the ground, but nothing came up.",
            "{day} {hero} wanted to have a garden, but the ground was dry and hard.",
        ),
        tries=(
            "{he} looked at it [every hour|ten times a day], but nothing happened.",
            "{he} waited and waited, and the sun was hot.",
        ),
        help=(
            '"It needs water and time," said {helper}. So they brought water every day.',
            "{helper} dug the ground with {him}, and they watered it every evening.",
        ),
        end=(
            "One morning there was a [big red|beautiful yellow] flower.",
            "In autumn there was a pumpkin as big as a house.",
            "{hero} learned that good things need time.",
        ),
        themes=("a garden", "a seed", "spring", "flowers", "summer", "autumn"),
    ),
    "winter": Scenario(
        kinds="animal person",
        problem=(
            "The winter came, and {hero} had no warm place to sleep.",
            "{day} there was snow everywhere, and {hero} was very cold.",
        ),
        tries=(
            "{he} danced to get warm, but it did not help for long.",
            "{he} made a bed of leaves, but the wind blew it away.",
        ),
        help=(
            '"Come in," said {helper}. "There is a warm fire and a place for you."',
            "{helper} gave {him} a thick [blanket|scarf] and a cup of hot milk.",
        ),
        end=(
            "Soon {hero} was warm from head to foot.",
            "They stayed together until the spring came.",
        ),
        themes=("winter", "snow", "the cold", "christmas", "ice"),
    ),
    "wish": Scenario(
        kinds="animal person mover still",
        problem=(
            "But {hero} had one big wish. {he} wanted to [touch|visit] the moon.",
            "Every night {hero} looked at the moon and wanted to be near it.",
        ),
        tries=(
            '"It is too far away," said everyone.',
            "{he} asked the wind, and {he} asked the clouds, but they could not help.",
        ),
        help=(
            "{helper} took {him} to a quiet lake. There was the moon, in the water.",
            '"Close your eyes," said {helper}. "In a dream you can go [there|anywhere]."',
        ),
        end=(
            "{hero} smiled, and the moon smiled too.",
            "That night {hero} was as near to the moon as anyone could be.",
        ),
        themes=("the moon", "a wish", "a dream", "the sky", "space", "magic"),
    ),
    "treasure": Scenario(
        kinds="animal person mover",
        problem=(
            "{day} {hero} found an old map of a treasure.",
            "{day} {hero} heard about a treasure behind the seven hills.",
        ),
        tries=(
            "The way was long, and {he} could not read all the signs.",
            "{he} looked for three days, but {he} did not find it.",
        ),
        help=(
            "{helper} could read the signs, and they dug under a big tree.",
            "They looked for it together, and {helper} saw a box under a stone.",
        ),
        end=(
            "In the box there was a book full of wonderful stories.",
            'There was no gold in it. "But I have found a friend," said {hero}.',
            "The box was full of gold, and they shared it with everyone.",
        ),
        themes=("a treasure", "gold", "a map", "treasure", "an island"),
    ),
    "sea": Scenario(
        kinds="animal person mover",
        problem=(
            "But {hero} had never seen the sea. {day} {he} left home to find it.",
            "{day} a bird told {hero} about the [big|blue] sea. {hero} wanted to see it.",
        ),
        tries=(
            "The way was long, and after two days {he} was very tired.",
            "{he} asked everyone, but nobody knew the way.",
        ),
        help=(
            "{helper} came with {him}, and they followed the river for three days.",
            '"The river knows the way," said {helper}. So they followed the water.',
        ),
        end=(
            "And then the sea was there, blue and wide and beautiful.",
            "They sat on the beach and listened to the water until the sun went down.",
        ),
        themes=("the sea", "a journey", "the ocean", "a trip", "the beach", "a holiday"),
    ),
    "sleep": Scenario(
        kinds="animal person",
        problem=(
            "One night {hero} could not sleep.",
            "{day} {hero} was very tired, but {he} could not fall asleep.",
        ),
        tries=(
            "{he} counted a hundred sheep, but it did not help.",
            "{he} turned to the left, and {he} turned to the right.",
            "the wind was too loud, and the bed was too hard.",
        ),
        help=(
            "{helper} sang a soft song about the moon and the stars.",
            "{helper} told {him} a long, quiet story, and the night became soft and warm.",
        ),
        end=(
            "Before the song was over, {hero} was asleep.",
            "Soon {hero} slept and had a lovely dream.",
        ),
        themes=("sleep", "bedtime", "a song", "dreams", "music"),
    ),
    "rain": Scenario(
        kinds="animal person mover still",
        problem=(
            "{day} it started to rain, and it did not stop for a week.",
            "{day} a big storm came, and the rain fell and fell.",
        ),
        tries=(
            "{hero} was wet and cold, and there was water everywhere.",
            "{hero} looked for a dry place, but there was none.",
        ),
        help=(
            "{helper} had a big umbrella, and there was place for two under it.",
            "{helper} made a roof of leaves and wood, and it was dry and warm under it.",
        ),
        end=(
            "When the sun came back, there was a rainbow in the sky.",
            '"Rain is not so bad with a friend," said {hero}.',
        ),
        themes=("the rain", "rain", "the weather", "a rainbow", "the wind", "a rainy day"),
    ),
    "lost_thing": Scenario(
        kinds="animal person mover still",
        thing="small",
        problem=(
            "{hero} had {athing} and loved it very much. {day} the {thing} was gone.",
            "{day} {hero} lost {athing}. It was a present from {his} grandmother.",
            "{day} the wind took {athing} away. It was the best thing that {hero} had.",
        ),
        tries=(
            ("{hero} looked [under the bed|behind the door|in every corner], "
            "but the {thing} was not there."),
            '"Where is my {thing}?" {he} cried. Nobody knew.',
            "{hero} looked everywhere for the {thing}.",
        ),
        help=(
            ("They looked together, and {helper} found the {thing} [in a tree|under a leaf|"
            "in the long grass]."),
            '{helper} smiled. "Is this your {thing}? I found it near the path."',
        ),
        end=(
            "{hero} was so happy to have the {thing} back.",
            "After that {hero} always took good care of the {thing}.",
        ),
        themes=("something lost",),
    ),
    "found_thing": Scenario(
        kinds="animal person mover",
        thing="small",
        problem=(
            "{day} {hero} found {athing} [near the path|under a tree|in the grass].",
            "{day} {hero} saw {athing} on the ground. There was nobody near.",
        ),
        tries=(
            '"Whose {thing} is this?" {he} thought. {he} asked everyone, but nobody knew.',
            ("The {thing} was beautiful, and {hero} wanted to keep it. "
            "But {he} knew that it was not right."),
        ),
        help=(
            ("At last {he} met {ahelper} who was very sad. \"I have lost my {thing}.\" "
            "{hero} gave the {thing} back at once."),
            ('Then {ahelper} came along and asked, "Have you seen my {thing}?" '
            '"Here it is," said {hero}.'),
        ),
        end=(
            "{helper} was so happy that they had a little party.",
            '"You are an honest friend," said {helper}.',
            "It felt good to do the right thing.",
        ),
        meet=False,
        themes=("being honest",),
    ),
    "gift": Scenario(
        kinds="animal person mover still",
        thing="small",
        problem=(
            "More than anything, {hero} wanted to have {athing}.",
            "{day} {hero} saw {athing} in a shop window and wanted to have it.",
        ),
        tries=(
            "But {he} had no money, and so {he} could only dream of it.",
            '"One day I will have a {thing} too," {he} said.',
        ),
        help=(
            "{helper} went away and came back with a present. It was the {thing}!",
            '"I have {athing} at home," said {helper}. "You can have it."',
        ),
        end=(
            "{hero} held the {thing} and could not stop smiling.",
            "The {thing} was the best present of all.",
        ),
        themes=("a present", "a gift"),
    ),
    "broken_thing": Scenario(
        kinds="animal person mover still",
        thing="small big",
        problem=(
            "{hero} had {athing}. {day} the {thing} broke.",
            "{day} {hero} fell over {athing}, and the {thing} broke in two.",
        ),
        tries=(
            "{hero} tried to mend it, but it did not work.",
            '"My {thing} is broken," {he} cried.',
        ),
        help=(
            "{helper} had good tools and mended the {thing} in an hour.",
            "They worked on the {thing} together until the evening.",
        ),
        end=(
            "The {thing} was as good as new.",
            "Now the {thing} was even better than before.",
        ),
    ),
    "old_thing": Scenario(
        kinds="animal person",
        thing="big",
        problem=(
            "{day} {hero} found {athing} that nobody wanted any more.",
            "{day} {hero} saw {athing} behind an old house. It was dirty and broken.",
        ),
        tries=(
            "{hero} wanted to make the {thing} new again, but it was too much work for one.",
            "{hero} washed the {thing} all day, but it was still broken.",
        ),
        help=(
            "{helper} brought some wood and paint, and they worked on it for three days.",
            "{helper} was good at mending things, and soon the {thing} was ready.",
        ),
        end=(
            "Then they went on a long trip with the {thing}.",
            "Everybody came to look at the beautiful {thing}.",
            "The {thing} was ready, and they were proud of their work.",
        ),
    ),
}
SKILLS = ("swim", "sing", "dance", "read", "count to ten", "paint", "jump over the wall",
          "stand on one leg", "play the drum", "whistle", "climb a tree")
TRAIT_SCENARIOS = {
    "hungry": "hungry", "lonely": "lonely", "sad": "lonely", "lost": "lost", "sleepy": "sleep",
    "brave": "rescue", "shy": "lonely", "fast": "race", "slow": "race", "strong": "rescue",
}

# --- what the user says to get a story --------------------------------------------------------

STORY_ABOUT = (
    "[Tell|Write|Give] me [a|a short|a little|a nice|a new|a bedtime] story about {topic}.",
    "Tell me a story about {topic}.",
    "Tell a story about {topic}.",
    "Write a [short |little |funny |long |] story about {topic}.",
    "[Can|Could|Will] you [please |] [tell|write] [me |] a [short |] story about {topic}?",
    "I [want|would like] [to hear |] a story about {topic}[, please|].",
    "[A|Another] story about {topic}[, please|].",
    "Story about {topic}[ please|].",
    "Please [tell|write] [me |] [a|one] story about {topic}.",
    "Do you know a story about {topic}?",
    "Tell me [something|a tale] about {topic}.",
    "[Write|Make up|Invent] a [tale|story] about {topic}.",
    "Write [a few sentences|some lines|something] about {topic}.",
    "How about a story about {topic}?",
    "Tell me about {topic}.",
    "{topic}",
    "{topic}, please.",
    "What happened to {topic}?",
    "Let us hear a story about {topic}.",
    "My child wants a story about {topic}.",
)
STORY_ANY = (
    "Tell me a [short |little |nice |funny |bedtime |good |] story.",
    "[A|One|Another] story[, please|].",
    "[Can|Could] you [please |] tell me a [short |] story?",
    "I want [to hear |] a story.",
    "Write a [short |] story.",
    "Story[ please| time|].",
    "Do you know [a story|any stories]?",
    "Tell me something.",
    "[Tell|Write] me anything.",
    "Once upon a time",
    "I am bored.",
    "Make up a story [for me|for my child].",
    "Surprise me.",
    "Tell me a fairy tale.",
    "What stories do you know?",
    "[Please |]entertain me.",
)
STORY_AGAIN = (
    "[Another|One more|Tell me another|Again] [one|story][, please|].",
    "[Tell me|Do you have] [one|another] more[, please|]?",
    "More[, please|].", "Now a different story.", "[Next|Again]!",
    "Can I have another story?",
)
STORY_AGAIN_ABOUT = (
    "[Now|And|And now] [one|a story|another one] about {topic}[, please|].",
    "Tell me [one|another one] about {topic}.", "Now about {topic}.", "And {topic}?",
    "Do you know one about {topic}?",
)
PREFIXES = ("Hi. ", "Hello. ", "Hi, ", "Hello, ", "Hey, ", "Please ", "Okay. ", "Ok, ", "Good. ",
            "Now ", "So, ", "Thanks. ")
LOVES = ("I [love|like] {many}. Tell me a story.", "My favourite animal is the {one}. A story!",
         "I have a {one} at home. [Can you|Please] tell me a story about it[.|?]",
         "My [son|daughter|sister|brother] loves {many}. Tell a story for [her|him|them].")
LEAD_INS = ("[Of course!|Sure!|With pleasure.|Yes!|Okay.] Here is a story about {topic}. ",
            "[Here is a story about {topic}.|I know a story about {topic}.] ")

# --- small talk: (what the user says, what the assistant says) --------------------------------

GREETING = "[I am happy to see you|How nice that you are here|It is nice to meet you]."
OFFER = (
    "[Would you like|Do you want] [to hear |] a [short |] story?",
    "[Shall I|May I] tell you a story?",
    "You can ask me for a story about [a cat|a dog|the sea|a brave mouse|the moon|a little boat].",
)
IDENTITY = (
    ("I am the small demo model of llamake. I tell short stories. "
    "[For better answers, try serve with a bigger model.|"
    "If you want to talk about more, try serve with a bigger model.|"
    "For more than stories, try serve with a bigger model.]"),
)
CHAT: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Hello[!|.|]", "Hi[!|.| there|]", "Hey[!| there| you|]", "Hello there[!|]", "Hello, friend.",
      "Hi[, model|, llama|, demo]", "Greetings.", "Good day.", "Hello, is anybody there?",
      "Hello world"),
     ("[Hello|Hi|Hello there]! " + GREETING + " {offer}",)),
    (("Good morning[!|.|]",), ("Good morning! I hope you slept well. {offer}",)),
    (("Good evening[!|.|]",), ("Good evening! It is a nice time for a story. {offer}",)),
    (("Good afternoon[!|.|]",), ("Good afternoon! " + GREETING + " {offer}",)),
    (("Good night[!|.|]", "Sleep well.", "I am going to bed[ now|]."),
     ("Good night! Sleep well and have [sweet|lovely] dreams.",)),
    (("Who are you?", "What are you?", "Tell me [something|] about yourself.",
      "Introduce yourself.",
      "Who am I talking to?", "[What|Which] model [are you|is this]?", "What is this?",
      "Say something about you.", "Are you a [big|large|small] model?", "Who is there?",
      "Are you a language model?", "What kind of model are you?", "What is this model?"),
     IDENTITY),
    (("What is your name?", "What [are you called|is your name]?", "Do you have a name?",
      "Your name?", "How are you called?"),
     ("I have no real name. " + IDENTITY[0],)),
    (("What is llamake?", "Do you know llamake?", "Tell me about llamake.", "Explain llamake.",
      "What does llamake do?"),
     ("The program llamake makes models ready for use and serves them. I am its demo model.",)),
    (("What is serve?", "How do I use a bigger model?", "Where is the bigger model?",
      "How do I get a better model?", "Can I use another model?"),
     ("You can try serve with a bigger model. Then you get much better answers than from me.",)),
    (("What can you do?", "What can I ask[ you|]?", "Help[!|.|]", "How can you help me?",
      "Can you help me?", "What do you know?", "What are you good at?", "What can I do here?",
      "I need help.", "How does this work?", "What should I ask?"),
     ("I can tell short stories, and I know a few simple facts. " + OFFER[2],
      ("I can tell you a short story about [an animal|a child|a boat|the moon]. I also know "
      "[colours|animal sounds|opposites] and a few other simple things."))),
    (("How are you[ today|]?", "How do you do?", "Are you [okay|well|happy|fine]?",
      "How is it going?", "What is up?", "How do you feel?", "Everything okay?"),
     (("[I am fine, thank you|I am very well, thank you|I feel great today]. [And how are you?|"
      "I hope you are well too.|I hope you have a nice day too.]"),)),
    (("I am [fine|good|great|well|happy|okay][, thanks| too| today|].", "Very well, thank you.",
      "I feel [good|great]."),
     ("[That is good|I am glad] to hear. {offer}",)),
    (("I am [so |very |] sad.", "I feel [bad|lonely|sad].", "I had a bad day.",
      "I am [tired|ill]."),
     ("I am sorry to hear that. I hope that you feel better soon. {offer}",
      "Oh, I am sorry. Maybe a [nice|happy] story can help. {offer}")),
    (("Thank you[!|.| very much| so much|]", "Thanks[!|.| a lot|]", "Many thanks.",
      "Thank you for [the story|your help].", "Cool, thanks.", "Thx"),
     ("You are welcome! [I am happy that I could help.|{offer}|Come back any time.]",)),
    (("[That was|What] a [nice|good|lovely|great|beautiful] story[!|.]", "I like [it|your story].",
      "[Very nice|Great|Wonderful|Good job|Well done|Lovely|Cool|Nice|Perfect|Good|Wow][!|.]",
      "That was [nice|good|great|beautiful].", "You are [great|good|funny|nice|clever]."),
     ("Thank you! I am [glad|happy] that you like it. {offer}",
      "Thank you, that is very kind. {offer}")),
    (("[That was|What] a [bad|boring|silly] story.", "I do not like it.", "That is wrong.",
      "You are [stupid|bad|silly|wrong].", "This makes no sense.", "Boring.", "No, that is wrong."),
     ("I am sorry. I am only a very small model, and I make mistakes. {offer}",)),
    (("Bye[!|.| bye|]", "Goodbye[!|.|]", "See you [later|soon|tomorrow].", "I have to go[ now|].",
      "Ciao", "Until tomorrow."),
     ("Goodbye! [Have a nice day.|See you soon.|Come back soon for another story.]",)),
    (("Are you a [robot|computer|machine|program]?", "Are you real?", "Are you [human|a person]?",
      "Are you alive?", "Are you an ai?", "Do you have feelings?"),
     ("I am a small computer program that tells stories. I am not a person.",)),
    (("How old are you?", "When were you born?", "When is your birthday?"),
     ("I am a very young model. I learned to talk not long ago.",)),
    (("Who made you?", "Who built you?", "Where do you come from?", "How were you made?",
      "Who trained you?", "Who is your father?"),
     ("A small program made me for llamake. It wrote many little stories, and I learned from them.",
      )),
    (("Where do you live?", "Where are you[ now|]?", "Where is your home?"),
     ("I live in your computer. It is warm and quiet here.",)),
    (("What is your favourite colour?", "Which colour do you like?", "Do you like blue?"),
     ("My favourite colour is blue, like the sky and the sea.",)),
    (("What is your favourite animal?", "Which animal do you like[ best|]?",
      "Do you like animals?"),
     ("I like [all animals|owls|cats] very much, because they are so good in stories. {offer}",)),
    (("What is your favourite food?", "Are you hungry?", "What do you eat?", "Do you eat?"),
     ("I do not eat, but I like stories about cake.",)),
    (("Do you like [music|books|me|stories|children|rain]?", "Do you love me?",
      "What do you like?"),
     ("Yes, I do! And I like stories most of all. {offer}",)),
    (("Tell me a joke.", "A joke[, please|].", "Make me laugh.", "Say something funny.",
      "Do you know a joke?", "Another joke."),
     ("Why did the clock go to school? It wanted to learn the time!",
      "What did the snail say on the turtle? Not so fast!",
      "Why is the moon so tired? It works every night!",
      "What does a cloud wear under its coat? Thunder wear!")),
    (("Sing [a song|something|for me].", "[Write|Tell me|Say] a poem.", "A poem[, please|].",
      "Write a [short |] poem about [the moon|a cat|spring|love].", "Write a song."),
     (("The moon is bright, the night is deep, the little stars are all asleep. "
      "The wind is soft, the day is done, good night until the morning sun."),
      ("The sun is up, the birds all sing, the grass is green, for it is spring. "
      "I sing with them the whole day long, and this is my little song."))),
    (("Yes[.|!| please|, please|]", "Okay.", "Ok", "Sure.", "Yes, I would like that.",
      "Please do."),
     ("{story}",)),
    (("No[.|!|, thanks|, thank you|]", "Not now.", "Maybe later."),
     ("That is fine. [I am here when you want a story.|Just ask me when you want a story.]",)),
    (("Stop[.|!|]", "Be quiet.", "Enough."), ("Okay, I will be quiet now. Have a nice day!",)),
    (("Test[.|]", "This is a test.", "Testing", "Testing one two three", "Ping", "Are you there?",
      "Do you hear me?", "Is this working?", "Does it work?"),
     ("Yes, I am here, and everything works. {offer}",)),
    (("Can you [count|count to ten]?", "Count to ten.", "Count from one to ten."),
     ("One, two, three, four, five, six, seven, eight, nine, ten.",)),
    (("What are the days of the week?", "Name the days of the week.",
      "How many days [has|are in] a week?", "How many days are there in a week?"),
     ("A week has seven days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.",
      )),
    (("What are the [four |] seasons?", "Name the seasons.", "How many seasons are there?"),
     ("There are four seasons: spring, summer, autumn and winter.",)),
    (("How many months [has|are in] a year?", "How many months are there in a year?"),
     ("A year has twelve months.",)),
    (("Name [some|three|a few] colours.", "What colours do you know?"),
     ("I know red, blue, green, yellow, black, white, brown and grey.",)),
    (("Name [some|three|a few] animals.", "What animals do you know?"),
     ("I know cats, dogs, birds, bears, foxes and many more. {offer}",)),
    (("Can you speak [english|german|french|another language]?", "Which languages do you speak?",
      "Do you speak [english|german|french|spanish]?"),
     ("I speak only simple English.",)),
)

# --- small facts --------------------------------------------------------------------------------

SOUNDS = {
    "cow": "moo", "dog": "woof", "cat": "meow", "sheep": "baa", "duck": "quack", "pig": "oink",
    "horse": "neigh", "hen": "cluck", "lion": "roar", "owl": "hoot", "frog": "croak",
    "bee": "buzz", "mouse": "squeak", "snake": "hiss", "wolf": "howl", "bird": "tweet",
    "donkey": "hee haw", "crow": "caw", "goose": "honk",
}
COLOURS = {
    "the sky": "blue", "the sea": "blue", "grass": "green", "a leaf": "green", "a frog": "green",
    "the sun": "yellow", "a banana": "yellow", "a lemon": "yellow", "snow": "white",
    "milk": "white", "a swan": "white", "the night": "black", "a crow": "black",
    "a strawberry": "red", "a tomato": "red", "fire": "red", "a fox": "red", "a pumpkin": "orange",
    "a carrot": "orange", "a bear": "brown", "wood": "brown", "an elephant": "grey",
    "a mouse": "grey", "a stone": "grey",
}
OPPOSITES = (
    ("big", "small"), ("hot", "cold"), ("up", "down"), ("day", "night"), ("black", "white"),
    ("old", "young"), ("fast", "slow"), ("happy", "sad"), ("good", "bad"), ("left", "right"),
    ("open", "closed"), ("wet", "dry"), ("long", "short"), ("hard", "soft"), ("full", "empty"),
    ("loud", "quiet"), ("high", "low"), ("summer", "winter"), ("yes", "no"), ("light", "dark"),
    ("early", "late"), ("rich", "poor"), ("strong", "weak"), ("near", "far"),
)
BABIES = {
    "cat": "kitten", "dog": "puppy", "cow": "calf", "hen": "chick", "sheep": "lamb",
    "bear": "cub", "horse": "foal", "pig": "piglet", "duck": "duckling", "lion": "cub",
}
LEGS = {
    "dog": "four legs", "cat": "four legs", "horse": "four legs", "cow": "four legs",
    "bird": "two legs", "hen": "two legs", "duck": "two legs", "spider": "eight legs",
    "ant": "six legs", "bee": "six legs", "fish": "no legs", "snake": "no legs",
    "elephant": "four legs", "person": "two legs",
}
FOODS = {
    "rabbit": "carrots and grass", "cow": "grass", "cat": "fish and mice", "bear": "fish and honey",
    "squirrel": "nuts", "bird": "seeds and berries", "monkey": "bananas", "horse": "grass and hay",
    "frog": "flies", "owl": "mice", "mouse": "seeds and bread",
}
HOMES = {
    "bee": "in a hive", "bird": "in a nest", "fish": "in the water", "bear": "in a cave",
    "fox": "in a hole", "cow": "on a farm", "horse": "on a farm", "spider": "in a web",
    "penguin": "on the ice", "camel": "in the desert", "whale": "in the sea", "pig": "on a farm",
}
MEANINGS = {
    "boat": "carries people on the water", "train": "carries people from town to town",
    "book": "has pages with words and stories", "umbrella": "keeps you dry in the rain",
    "clock": "shows the time", "lamp": "gives light", "key": "opens a door",
    "bridge": "helps you to cross a river", "map": "shows you the way", "robot": "works like a man",
    "bed": "is a place to sleep", "scarf": "keeps you warm in winter", "cup": "holds water or milk",
    "computer": "works with numbers and words", "school": "is a place to learn",
}
NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
FACTS = {
    "sound": (("What does {x} say?", "What [sound|noise] does {x} make?", "How does {x} sound?",
               "Which sound does {x} make?", "What do {many} say?"), ("{x} says {y}.",)),
    "sayer": (("Which animal says {y}?", "Who says {y}?", "What animal goes {y}?"),
              ("{x} says {y}.",)),
    "colour": (("[What|Which] colour is {x}?", "[What|Which] color is {x}?",
                "What is the [colour|color] of {x}?", "[What|Which] [colour|color] does {x} have?",
                "The colour of {x}?"), ("{x} is {y}.",)),
    "opposite": (("What is the opposite of {x}?", "[The |]opposite of {x}[?|]",
                  "Which word is the opposite of {x}?", "Do you know the opposite of {x}?"),
                 ("The opposite of {x} is {y}.",)),
    "baby": (("What is a baby {x} called?", "What do you call a baby {x}?",
              "What is the name of a baby {x}?"), ("A baby {x} is called a {y}.",)),
    "legs": (("How many legs [has|does|do] {x} [have|got]?", "How many legs has {x}?"),
             ("{x} has {y}.",)),
    "food": (("What does {x} eat?", "What do {many} eat?", "What does {x} like to eat?"),
             ("{x} eats {y}.",)),
    "home": (("Where does {x} live?", "Where do {many} live?", "What is the home of {x}?"),
             ("{x} lives {y}.",)),
    "meaning": (("What is {x}?", "What does {x} do?", "What is {x} for?", "Explain {x}."),
                ("{x} {y}.",)),
    "next": (("What comes after {x}?", "Which [number|day] comes after {x}?",
              "What is next after {x}?"), ("After {x} comes {y}.",)),
    "sum": (("What is {x}[?|]", "How much is {x}[?|]", "{x}[?|]", "Can you add {x}?",
             "[Calculate|Compute] {x}."), ("That is {y}.",)),
}

# --- what the model does not know -----------------------------------------------------------------

UNKNOWN = (
    "What is the capital of {junk}?", "What is the capital of [france|germany|spain|england]?",
    "Who is the [president|king|leader] of {junk}?", "Explain {junk} {junk}.", "What is {junk}?",
    "Explain [quantum physics|gravity|the internet|black holes|evolution] [to me|].",
    "Write a [python|java|rust|small] [program|function|script][ for {junk}| that sorts a list|].",
    "How do I [cook|build|fix|install|use] {junk}?", "How can I {junk} a {junk}?",
    "Write an [email|essay|article] about {junk}.",
    "Translate {junk} into [german|french|spanish].",
    "Why is [the sky blue|the sea salty|{junk} so big]?", "Who wrote {junk}?", "Who was {junk}?",
    "What is the meaning of life?", "What is the weather [like |] [today|in {junk}]?",
    "What time is it?", "What day is [it|today]?", "Solve [this equation|{junk}].",
    "What do you think about {junk}?", "Summarize [this text|the book {junk}].",
    "List [five|ten|the best] {junk}.", "Who won the {junk}?", "When did {junk} [end|begin]?",
    "How far is the [moon|sun|{junk}]?", "How does a [computer|car|{junk}] work?",
    "What is the largest [planet|country|{junk}] in the world?", "Give me a recipe for {junk}.",
    "How many people live in {junk}?", "Which {junk} is the best?", "Can you {junk}?",
    "{junk} {junk}", "{junk}", "Is {junk} a {junk}?",
    "What is the difference between {junk} and {junk}?",
    "What is [a transformer|machine learning|a neural network|safetensors|quantization]?",
    "Tell me the news.", "I need a recipe.", "What should I eat today?", "Write code.",
    "What does {junk} mean?", "What is the colour of {junk}?", "What does a {junk} say?",
    "Where does the {junk} live?", "What is the opposite of {junk}?", "Do you know {junk}?",
    "Where is {junk}?", "What is your opinion on {junk}?", "Where do I find {junk}?",
    "I {junk} my {junk}.", "The {junk} is {junk} and the {junk} is {junk}.",
    "[Hola|Bonjour|Guten Tag|Hallo|Ciao] {junk}", "Was ist {junk}?", "Let us talk about {junk}.",
)
SORRY = (
    "[I am sorry, but |]I do not know that. I am only a [very |] small [demo |] model.",
    "That is a [good|hard] question, but I do not know the answer. I am only a small demo model.",
)
SORRY_STORY = ("But I [can tell you|know] a [short |little |] story. ",)
SYLLABLES = words(
    "ba be bi bo bu ca co cu da de di do du fa fe fi fo ga ge go gra ha he hi ho ja jo ka ke ki ko "
    "la le li lo lu ma me mi mo mu na ne ni no nu pa pe pi po qua ra re ri ro ru sa se si so su "
    "sta ta te ti to tra tu va ve vi vo wa we wi wo ya za zo al an ar ek en er es il im in is "
    "ol on or os ul um un us ing ion ent ble ck th sh ch ly ry"
)

SYSTEM = (
    "You are a helpful assistant.", "You are a friendly storyteller.",
    "You tell short stories for children.", "You are a [kind|helpful|small|funny] model.",
    "Answer in [short|simple] sentences.", "You are llamake, a small demo model.",
    "You are a helpful AI assistant. Be polite and honest.", "Be brief.",
    "You are {junk}, a {junk} {junk}.", "Use simple words. Do not use {junk}.",
    "You are a chat bot made by {junk}. Answer all questions of the user.",
)

# --- questions about the story just told ----------------------------------------------------------

ABOUT_NAME = (("What was [the name of the {kind}|the {kind} called]?", "What was {his} name?",
               "What is the name of the {kind}?"),
              ("The {kind} was called {name}.", "The name of the {kind} was {name}."))
ABOUT_HELPER = (("Who helped [the {kind}|{him}]?", "Who was the friend?", "Who came along?",
                 "Who was the other one?"),
                ("It was {helper}.",))
ABOUT_PLACE = (("Where did [the {kind}|{he}] live?", "Where was that?", "Where was {his} home?"),
               ("The {kind} lived {place}.",))
ABOUT_HERO = (("Who was [the story about|in the story]?", "What was the story about?"),
              ("The story was about {ahero}.",))
NAMED = (" named ", " called ")
NAMED_BY_USER = (*NAMED, " with the name ")
WITH_HELPER = (" and ", " and ", " who meets ")
WITH_THING = {  # and the scenarios that they call for
    " and ": (), " with ": (), " who has ": (), " who wants ": ("gift",),
    " who finds ": ("found_thing", "old_thing"), " who found ": ("found_thing", "old_thing"),
    " who lost ": ("lost_thing",), " who loses ": ("lost_thing",),
}
WITH_SKILL = (" who wants to ", " who cannot ", " who could not ", " who learns to ")
SUFFIXES = (" in three sentences", " for my daughter", " for my son", " for children",
            " with a happy ending", " in simple words", " before I go to sleep", " for a child",
            " that is funny", " that is not too long", " for me")
LITTLE_WORDS = words("a an the my your on in plus")
PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her"), "it": ("it", "it", "its")}

TABLES = (
    ANIMALS, MALE, FEMALE, PEOPLE, MOVERS, STILL, SMALL_THINGS, BIG_THINGS, PLURALS, SHE_NAMES,
    HE_NAMES, IT_NAMES, TRAITS, HELPER_TRAITS, THING_TRAITS, HOBBIES, PLACES, PLACE_ASKED, WEATHERS,
    DAY, OPENINGS, HOME, LIKES, MEET, ASK, THANKS, CLOSINGS, SCENARIOS, SKILLS, STORY_ABOUT,
    STORY_ANY, STORY_AGAIN, STORY_AGAIN_ABOUT, PREFIXES, LOVES, LEAD_INS, OFFER, CHAT, SOUNDS,
    COLOURS, OPPOSITES, BABIES, LEGS, FOODS, HOMES, MEANINGS, NUMBERS, DAYS, FACTS, UNKNOWN, SORRY,
    SORRY_STORY, SYSTEM, ABOUT_NAME, ABOUT_HELPER, ABOUT_PLACE, ABOUT_HERO, NAMED_BY_USER,
    WITH_HELPER, WITH_THING, WITH_SKILL, SUFFIXES, LITTLE_WORDS, PRONOUNS,
)
# fmt: on

# --------------------------------------------------------------------------------------------
# From the grammar to chats
# --------------------------------------------------------------------------------------------

Chat = list[tuple[str, str]]  # (role, text) pairs
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SENTENCE_START = re.compile(r'(^"?|[.!?] "?|\." )([a-z])')


def expand(rng: random.Random, template: str, slots: dict[str, str] | None = None) -> str:
    """Fill in a template and start its sentences with capitals."""
    text = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    if "{junk}" in text:
        text = re.sub(r"\{junk\}", lambda _: junk_word(rng), text)
    if slots and "{hero}" in text and "name" in slots:  # now the name, now the noun
        noun = "the " + slots["kind"]
        text = re.sub(r"\{hero\}", lambda _: rng.choice((slots["name"], noun)), text)
    text = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text.format_map(slots or {}))
    text = re.sub(r" +", " ", text).replace(" ,", ",").replace(" .", ".").strip()
    return SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    vowel = noun[0].lower() in "aeiou" and not noun.startswith(("uni", "one"))
    return ("an " if vowel else "a ") + noun


def plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


def junk_word(rng: random.Random) -> str:
    """A word that no table holds: stands for all that a user may say and we do not know."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
    return word.capitalize() if rng.random() < 0.3 else word


@dataclass
class Story:
    """A story and what a user may want to know about it."""

    text: str
    slots: dict[str, str]
    has_place: bool


@dataclass
class Wish:
    """What a user asks a story to be about; everything else is left to chance."""

    kind: str = ""
    trait: str = ""
    size: str = ""
    name: str = ""
    skill: str = ""
    helper: str = ""
    helper_trait: str = ""
    thing: str = ""
    thing_trait: str = ""
    place: str = ""
    weather: str = ""
    scenario: str = ""


def hero_class(kind: str) -> str:
    if kind in MOVERS:
        return "mover"
    if kind in STILL:
        return "still"
    return "person" if kind in MALE + FEMALE + PEOPLE else "animal" if kind in ANIMALS else "still"


def draw_kind(rng: random.Random) -> str:
    return rng.choice(
        rng.choices((ANIMALS, MALE + FEMALE, PEOPLE, MOVERS, STILL), (6, 2, 1, 1.3, 1.3))[0]
    )


def draw_helper(rng: random.Random, kind: str) -> str:
    options = rng.choices((ANIMALS, MALE + FEMALE, PEOPLE), (6, 2, 1))[0]
    return rng.choice([option for option in options if option != kind])


def draw_pronoun(rng: random.Random, kind: str, name: str) -> str:
    if kind in MALE or name in HE_NAMES:
        return "he"
    if kind in FEMALE or name in SHE_NAMES:
        return "she"
    if hero_class(kind) in ("mover", "still"):
        return "it"
    return rng.choice(("he", "she"))


def draw_name(rng: random.Random, kind: str, pronoun: str) -> str:
    return rng.choice({"he": HE_NAMES, "she": SHE_NAMES, "it": IT_NAMES}[pronoun])


def size_of(thing: str) -> str:
    return "small" if thing in SMALL_THINGS else "big"


def draw_scenario(rng: random.Random, wish: Wish, kind: str, trait: str) -> str:
    fitting = [
        name
        for name, scenario in SCENARIOS.items()
        if hero_class(kind) in scenario.kinds and scenario.thing == ""
    ]
    if wish.thing:
        size = size_of(wish.thing)
        fitting = [
            name
            for name, scenario in SCENARIOS.items()
            if size in scenario.thing and hero_class(kind) in scenario.kinds
        ]
    elif rng.random() < 0.2:
        fitting = [name for name, s in SCENARIOS.items() if "small" in s.thing]
        fitting = [name for name in fitting if hero_class(kind) in SCENARIOS[name].kinds]
    if not wish.thing and TRAIT_SCENARIOS.get(trait) in fitting and rng.random() < 0.6:
        return TRAIT_SCENARIOS[trait]
    return rng.choice(fitting)


def tell(rng: random.Random, wish: Wish) -> Story:
    """Tell a story that grants the wish."""
    kind = wish.kind
    while not kind:
        kind = draw_kind(rng)
        suits = SCENARIOS[wish.scenario].kinds if wish.scenario else "animal person mover still"
        if wish.thing in BIG_THINGS:
            suits = "animal person"
        if hero_class(kind) not in suits or kind in (wish.helper, wish.thing):
            kind = ""
    trait = wish.trait or (rng.choice(OPEN_TRAITS) if rng.random() < 0.75 else "")
    scenario_name = wish.scenario or draw_scenario(rng, wish, kind, trait)
    scenario = SCENARIOS[scenario_name]
    pronoun = draw_pronoun(rng, kind, wish.name)
    helper = wish.helper or draw_helper(rng, kind)
    thing = wish.thing or rng.choice([t for t in SMALL_THINGS if t != kind])
    thing_trait = wish.thing_trait or (rng.choice(THING_TRAITS) if rng.random() < 0.7 else "")
    helper_trait = wish.helper_trait or rng.choice(HELPER_TRAITS)
    hobby, hobby2 = rng.sample(HOBBIES[hero_class(kind)], 2)
    he, him, his = PRONOUNS[pronoun]
    slots = {
        "he": he,
        "him": him,
        "his": his,
        "kind": kind,
        "hobby": hobby,
        "hobby2": hobby2,
        "helper": "the " + helper,
        "thing": thing,
        "skill": wish.skill or rng.choice(SKILLS),
        "ahelper": article(f"{helper_trait} {helper}"),
        "athing": article(f"{thing_trait} {thing}".strip()),
        "place": expand(rng, PLACES[wish.place or rng.choice(tuple(PLACES))]).lower(),
        "weather": wish.weather or rng.choice(WEATHERS),
        "hero": "the " + kind,
        "ahero": article(" ".join(filter(None, (trait, wish.size, kind)))),
    }
    if wish.name or rng.random() < 0.55:
        slots["name"] = wish.name or draw_name(rng, kind, pronoun)
        slots["ahero"] += rng.choice(NAMED) + slots["name"]
    day = expand(rng, rng.choice(DAY), slots)
    slots["day"] = day

    def say(templates: tuple[str, ...]) -> str:
        return expand(rng, rng.choice(templates), slots)

    opening = rng.choice(OPENINGS)
    has_place = "{place}" in opening
    parts = [expand(rng, opening, slots)]
    if not has_place and (wish.place or rng.random() < 0.4):
        parts.append(say(HOME))
        has_place = True
    if trait in TRAITS and rng.random() < 0.6:
        parts.append(say(TRAITS[trait]))
    if rng.random() < 0.5 or len(parts) == 1:
        parts.append(say(LIKES))
    problems = scenario.problem
    if wish.weather:
        problems = tuple(p for p in problems if "{day}" in p) or problems
    parts.append(say(problems))
    parts.append(say(scenario.tries))
    helping = say(scenario.help)
    if scenario.meet:
        parts.append(say(MEET))
        if not helping.startswith('"') and rng.random() < 0.8:
            parts.append(say(ASK))
    parts.append(helping)
    if scenario.meet and rng.random() < 0.5:
        parts.append(say(THANKS))
    parts.append(say(scenario.end))
    if rng.random() < 0.8:
        parts.append(say(CLOSINGS))
    return Story(" ".join(parts), slots, has_place)


# --- what users ask for ---------------------------------------------------------------------------


def draw_topic(rng: random.Random) -> tuple[str, Wish]:
    """A topic in the words of a user, and the wish behind it."""
    roll = rng.random()
    if roll < 0.10:  # a theme: the sea, friendship, a birthday
        name = rng.choice([name for name, s in SCENARIOS.items() if s.themes])
        return rng.choice(SCENARIOS[name].themes), Wish(scenario=name)
    if roll < 0.15:
        place = rng.choice(tuple(PLACES))
        return rng.choice((article(place), "the " + place)), Wish(place=place)
    if roll < 0.20:
        thing = rng.choice(SMALL_THINGS + BIG_THINGS)
        return rng.choice((article(thing), "the " + thing, "my " + thing)), Wish(thing=thing)
    if roll < 0.23:
        weather = rng.choice(WEATHERS)
        return article(weather + " day"), Wish(weather=weather)
    if roll < 0.27:  # only a name
        name = rng.choice(rng.choice((SHE_NAMES, HE_NAMES)))
        kind = rng.choice(
            ("girl", "woman", "princess") if name in SHE_NAMES else ("boy", "man", "prince")
        )
        return name, Wish(name=name, kind=rng.choice((kind, rng.choice(ANIMALS))))
    if roll < 0.29:  # a name that we have never heard
        name = junk_word(rng).capitalize()
        return name, Wish(name=name, kind=rng.choice(("child", "robot", rng.choice(ANIMALS))))
    wish = Wish(kind=draw_kind(rng))
    if roll < 0.33:  # a hero that we have never heard of
        wish.kind = junk_word(rng).lower()
    noun = wish.kind
    if rng.random() < 0.35:
        wish.trait = rng.choice(tuple(TRAITS))
        if rng.random() < 0.12 and wish.trait not in ("little", "small", "big", "tiny"):
            wish.size = rng.choice(("little", "little", "small", "big"))
        noun = f"{wish.trait} {wish.size} {noun}".replace("  ", " ")
    phrase = rng.choices(
        (article(noun), "the " + noun, "my " + noun, plural(noun), noun), (70, 10, 4, 10, 6)
    )[0]
    if rng.random() < 0.12:
        if rng.random() < 0.85:
            wish.name = draw_name(rng, noun, draw_pronoun(rng, wish.kind, ""))
        else:
            wish.name = junk_word(rng).capitalize()
        phrase = article(noun) + rng.choice(NAMED_BY_USER) + wish.name
    roll = rng.random()
    if roll < 0.12:
        wish.helper = draw_helper(rng, wish.kind)
        if rng.random() < 0.15:
            wish.helper_trait = rng.choice(HELPER_TRAITS)
        phrase += rng.choice(WITH_HELPER) + article(f"{wish.helper_trait} {wish.helper}".strip())
    elif roll < 0.26:
        options = SMALL_THINGS * 2
        if hero_class(wish.kind) in ("animal", "person"):
            options = options + BIG_THINGS * 3
        wish.thing = rng.choice([t for t in options if t != wish.kind])
        if rng.random() < 0.2:
            wish.thing_trait = rng.choice(THING_TRAITS)
        joint = rng.choice((" and ", rng.choice(tuple(WITH_THING))))
        for scenario in WITH_THING[joint]:
            fits = hero_class(wish.kind) in SCENARIOS[scenario].kinds
            if fits and size_of(wish.thing) in SCENARIOS[scenario].thing:
                wish.scenario = scenario
        phrase += joint + article(f"{wish.thing_trait} {wish.thing}".strip())
    elif roll < 0.29 and hero_class(wish.kind) in ("animal", "person"):
        wish.scenario, wish.skill = "learn", rng.choice(SKILLS)
        phrase += rng.choice(WITH_SKILL) + wish.skill
    elif roll < 0.34:
        wish.place = rng.choice(tuple(PLACES))
        asked = PLACE_ASKED.get(wish.place, f"in the {wish.place}")
        phrase += rng.choice((" ", " who lives ")) + asked
    elif roll < 0.38:
        wish.weather = rng.choice(WEATHERS)
        phrase += f" on a {wish.weather} day"
    elif roll < 0.48:
        fitting = [
            name
            for name, s in SCENARIOS.items()
            if s.themes and not s.thing and hero_class(wish.kind) in s.kinds
        ]
        wish.scenario = rng.choice(fitting)
        phrase += " and " + rng.choice(SCENARIOS[wish.scenario].themes)
    return phrase, wish


def roughen(rng: random.Random, text: str) -> str:
    """Write as users write: without capitals, without a full stop, with a hello before it."""
    if rng.random() < 0.12:
        text = rng.choice(PREFIXES) + text[0].lower() + text[1:]
    roll = rng.random()
    if roll < 0.3:
        text = text.lower()
    elif roll < 0.32:
        text = text.upper()
    roll = rng.random()
    if roll < 0.25:
        text = text.rstrip(".?!")
    elif roll < 0.3:
        text = text.rstrip(".?!") + rng.choice(("!", "...", "?", "!!", " .", " ?", " :)"))
    return text


def ask_for_story(rng: random.Random, again: bool) -> tuple[str, str, Story]:
    """A request for a story and the answer to it."""
    roll = rng.random()
    if roll < 0.16:
        prompt = expand(rng, rng.choice(STORY_AGAIN if again else STORY_ANY))
        wish, topic = Wish(), ""
    elif roll < 0.20:
        kind = rng.choice(ANIMALS)
        slots = {"one": kind, "many": plural(kind)}
        prompt = expand(rng, rng.choice(LOVES), slots)
        wish, topic = Wish(kind=kind), ""
    else:
        topic, wish = draw_topic(rng)
        asking = STORY_AGAIN_ABOUT if again and rng.random() < 0.6 else STORY_ABOUT
        suffix = rng.choice(SUFFIXES) if rng.random() < 0.06 else ""
        prompt = expand(rng, rng.choice(asking), {"topic": topic + suffix})
    story = tell(rng, wish)
    answer = story.text
    if topic and rng.random() < 0.06:
        about = topic if not topic.startswith("my ") else "your " + topic[3:]
        answer = expand(rng, rng.choice(LEAD_INS), {"topic": about}) + " " + answer
    return prompt, answer, story


def small_talk(rng: random.Random) -> tuple[str, str]:
    # The first intents of the table are what people try first.
    prompts, answers = rng.choice(CHAT[:16] if rng.random() < 0.45 else CHAT)
    offer = expand(rng, rng.choice(OFFER))
    answer = expand(rng, rng.choice(answers), {"offer": offer, "story": "\0"})
    if "\0" in answer:
        answer = tell(rng, Wish()).text
    return expand(rng, rng.choice(prompts)), answer


def some_fact(rng: random.Random) -> tuple[str, str]:
    subject = rng.choice(tuple(FACTS))
    many = ""
    if subject in ("sound", "legs", "food", "home", "meaning"):
        table = {"sound": SOUNDS, "legs": LEGS, "food": FOODS, "home": HOMES, "meaning": MEANINGS}
        x, y = rng.choice(tuple(table[subject].items()))
        x, many = article(x), plural(x)
    elif subject == "sayer":
        x, y = rng.choice(tuple(SOUNDS.items()))
        x = article(x)
    elif subject == "colour":
        x, y = rng.choice(tuple(COLOURS.items()))
    elif subject == "baby":
        x, y = rng.choice(tuple(BABIES.items()))
    elif subject == "opposite":
        x, y = rng.sample(rng.choice(OPPOSITES), 2)
    elif subject == "next":
        series = rng.choice((NUMBERS, DAYS))
        index = rng.randrange(len(series) - 1)
        x, y = series[index], series[index + 1]
    else:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        y = NUMBERS[a + b]
        x = rng.choice(
            (f"{a} + {b}", f"{a}+{b}", f"{a} plus {b}", f"{NUMBERS[a]} plus {NUMBERS[b]}")
        )
    prompts, answers = FACTS[subject]
    slots = {"x": x, "y": y, "many": many}
    answer = expand(rng, rng.choice(answers), slots)
    if rng.random() < 0.25:  # also without the article and for a named subject: "cow sound?"
        slots["x"] = x.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    return expand(rng, rng.choice(prompts), slots), answer


def no_idea(rng: random.Random, lexicon: list[str]) -> tuple[str, str]:
    """Something the model cannot know, and a friendly way out."""
    if rng.random() < 0.7:
        prompt = expand(rng, rng.choice(UNKNOWN))
    else:  # words without sense
        count = rng.randint(2, 12)
        prompt = " ".join(
            junk_word(rng) if rng.random() < 0.3 else rng.choice(lexicon) for _ in range(count)
        )
        prompt = prompt[0].upper() + prompt[1:] + rng.choice((".", "?", ""))
    answer = expand(rng, rng.choice(SORRY))
    if rng.random() < 0.5:
        answer += " " + expand(rng, SORRY_STORY[0]) + " " + tell(rng, Wish()).text
    else:
        answer += " " + expand(rng, rng.choice(OFFER))
    return prompt, answer


def about_story(rng: random.Random, story: Story) -> tuple[str, str]:
    options = [ABOUT_HERO, ABOUT_HELPER]
    if "name" in story.slots:
        options += [ABOUT_NAME, ABOUT_NAME]
    if story.has_place:
        options.append(ABOUT_PLACE)
    prompts, answers = rng.choice(options)
    slots = {key: value for key, value in story.slots.items() if key != "hero"}
    return expand(rng, rng.choice(prompts), slots), expand(rng, rng.choice(answers), slots)


def make_chat(rng: random.Random, lexicon: list[str]) -> Chat:
    """One chat of the training text: mostly one turn, sometimes up to six."""
    chat: Chat = []
    if rng.random() < 0.2:
        chat.append(("system", expand(rng, rng.choice(SYSTEM))))
    turns = rng.choices((1, 2, 3, 4, 6), (64, 20, 10, 4, 2))[0]
    story: Story | None = None
    for turn in range(turns):
        roll = rng.random()
        if story is not None and roll < 0.25:
            prompt, answer = about_story(rng, story)
        elif roll < 0.6:
            prompt, answer, story = ask_for_story(rng, again=turn > 0)
        elif roll < 0.78:
            prompt, answer = small_talk(rng)
        elif roll < 0.91:
            prompt, answer = some_fact(rng)
        else:
            prompt, answer = no_idea(rng, lexicon)
        chat += [("user", roughen(rng, prompt)), ("assistant", answer)]
    return chat


def strings(table: object) -> Iterator[str]:
    """Every string in a table of the grammar."""
    if isinstance(table, str):
        yield table
    elif isinstance(table, Scenario):
        for part in (table.problem, table.tries, table.help, table.end, table.themes):
            yield from strings(part)
    elif isinstance(table, dict):
        for key, value in table.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(table, (list, tuple)):
        for item in table:
            yield from strings(item)


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def vocabulary() -> list[str]:
    """Every word that the grammar can produce, apart from made-up words."""
    found: set[str] = set()
    for text in strings(TABLES):
        found.update(words_of(re.sub(r"\{\w*\}", " ", text)))
    for nouns in (ANIMALS, MALE, FEMALE, PEOPLE, MOVERS, STILL):
        found.update(plural(noun) for noun in nouns)
    found.update(plural(noun) for table in (SOUNDS, LEGS, FOODS, HOMES, MEANINGS) for noun in table)
    return sorted(found)


# --------------------------------------------------------------------------------------------
# From chats to a model
# --------------------------------------------------------------------------------------------

HERE = Path(__file__).resolve().parent
BOS, END = "<s>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message['content'] | trim }}{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
VOCAB_SIZE = 1152
CONTEXT = 1024
IGNORE = -100  # the label of a token that the loss leaves out
PEAK_RATE, LAST_RATE, WARMUP = 3e-3, 1e-4, 100
POOL = 512  # chats sorted by length together, so that a batch needs little padding

Example = tuple[list[int], list[int]]  # token ids and labels


def train_tokenizer(seed: int, lexicon: list[str]) -> bytes:
    """A SentencePiece model, trained on the turns of some chats."""
    rng = random.Random(f"tokenizer {seed}")
    turns = [text for _ in range(30_000) for _, text in make_chat(rng, lexicon)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(turns),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars="".join(map(chr, range(33, 127))),
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,  # the first word of an answer has no space before it
        bos_piece=BOS,
        eos_piece=END,
        control_symbols=list(ROLES.values()),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def encode(tokenizer: sentencepiece.SentencePieceProcessor, chat: Chat) -> Example:
    """The tokens of a chat, just as the chat template yields them, and the labels."""
    end = tokenizer.piece_to_id(END)
    ids = [tokenizer.piece_to_id(BOS)]
    labels = [IGNORE]
    for role, text in chat:
        body = [*tokenizer.encode(text), end]
        ids += [tokenizer.piece_to_id(ROLES[role]), *body]
        labels += [IGNORE, *(body if role == "assistant" else [IGNORE] * len(body))]
    return ids, labels


def examples(
    tokenizer: sentencepiece.SentencePieceProcessor, rng: random.Random, lexicon: list[str]
) -> Iterator[Example]:
    """Fresh chats without end."""
    while True:
        example = encode(tokenizer, make_chat(rng, lexicon))
        if len(example[0]) <= CONTEXT:
            yield example


def batches(
    stream: Iterator[Example], rng: random.Random, tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of chats of nearly the same length, padded on the right.

    The padding comes after everything and has no label, so no attention mask is needed.
    """
    while True:
        pool = sorted((next(stream) for _ in range(POOL)), key=lambda item: len(item[0]))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if len(example[0]) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in group]),
                torch.tensor([labels + [IGNORE] * (length - len(ids)) for ids, labels in group]),
            )


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean loss on the labelled tokens; logits are computed only where they count."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    known = wanted != IGNORE
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[known]), wanted[known])


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to the last rate."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    part = (step - WARMUP) / max(1, steps - WARMUP)
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * part))


def held_out_loss(model: LlamaForCausalLM, held_out: list[tuple]) -> float:
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, labels in held_out:
            known = int((labels[:, 1:] != IGNORE).sum())
            total += float(loss_of(model, ids, labels)) * known
            count += known
    return total / count


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(
    out: Path, model: bytes, tokenizer: sentencepiece.SentencePieceProcessor
) -> None:
    (out / "tokenizer.model").write_bytes(model)
    special = ["<unk>", BOS, END, *ROLES.values()]
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": False,
            "legacy": True,  # transformers then needs no protobuf to read the tokenizer
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONTEXT,
            "bos_token": BOS,
            "eos_token": END,
            "pad_token": END,
            "unk_token": "<unk>",
            "added_tokens_decoder": {
                str(tokenizer.piece_to_id(piece)): {
                    "content": piece,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for piece in special
            },
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_json(
        out / "special_tokens_map.json",
        {
            "bos_token": BOS,
            "eos_token": END,
            "pad_token": END,
            "unk_token": "<unk>",
            "additional_special_tokens": list(ROLES.values()),
        },
    )


def train(out: Path, seed: int, steps: int, tokens: int, threads: int) -> None:
    started = time.monotonic()
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    out.mkdir(parents=True, exist_ok=True)

    lexicon = vocabulary()
    (out / "vocabulary.txt").write_text("\n".join(lexicon) + "\n", encoding="utf-8")
    tokenizer_model = train_tokenizer(seed, lexicon)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    write_tokenizer(out, tokenizer_model, tokenizer)

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.piece_to_id(BOS),
        eos_token_id=tokenizer.piece_to_id(END),
        pad_token_id=tokenizer.piece_to_id(END),
    )
    model = LlamaForCausalLM(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.95),
    )

    held_out_rng = random.Random(f"held out {seed}")
    held_out_stream = batches(examples(tokenizer, held_out_rng, lexicon), held_out_rng, tokens)
    held_out = [next(held_out_stream) for _ in range(16)]
    rng = random.Random(f"training {seed}")
    stream = batches(examples(tokenizer, rng, lexicon), rng, tokens)

    seen = 0
    recent: list[float] = []  # the training loss of the last hundred steps
    history: list[dict[str, float]] = []
    for step in range(steps):
        ids, labels = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = loss_of(model, ids, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += ids.numel()
        recent = [*recent[-99:], float(loss.detach())]
        if (step + 1) % 200 == 0 or step + 1 == steps:
            point = {
                "step": step + 1,
                "loss": round(sum(recent) / len(recent), 4),
                "held_out_loss": round(held_out_loss(model, held_out), 4),
            }
            history.append(point)
            print(f"{point}  {time.monotonic() - started:.0f} s", flush=True)

    # What is measured last is what is stored: the weights rounded to float16.
    model = model.half().float()
    stored_loss = held_out_loss(model, held_out)
    model.half().save_pretrained(out)
    write_json(
        out / "training_log.json",
        {
            "seed": seed,
            "steps": steps,
            "tokens_per_batch": tokens,
            "tokens_seen": seen,
            "parameters": parameters,
            "vocabulary_words": len(lexicon),
            "training_loss": history[-1]["loss"],
            "held_out_loss": round(stored_loss, 4),
            "seconds": round(time.monotonic() - started),
            "threads": threads,
            "torch": torch.__version__,
            "history": history,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model of llamake.")
    parser.add_argument("--out", type=Path, default=HERE, help="where to write the model")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens in a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", type=int, metavar="N", help="print N training chats and stop")
    options = parser.parse_args()
    if options.show is not None:
        rng = random.Random(options.seed)
        lexicon = vocabulary()
        for _ in range(options.show):
            for role, text in make_chat(rng, lexicon):
                print(f"{role:>9}: {text}")
            print()
        return
    train(options.out, options.seed, options.steps, options.tokens, options.threads)


if __name__ == "__main__":
    main()

"""Which decoded answers name no object."""

from __future__ import annotations

import pytest

from decaf_ros.grounding.denial import names_nothing

NOTHING = """
none
None.
"none"
[none]
None of them
None of the above
None, the mug is not there
None (no mug visible)
None - there is no mug
None visible
none/unknown
Nothing!
Nothing in the video
nothing moved
Nothing matches the expression
Nobody
nobody is there
no one
No-one
No one is holding it
Neither
no
No.
Nope
No, there is none
No. There is no mug.
No, I don't see a mug.
N/A
n.a.
NA
null
Not applicable
not applicable.
Unknown
unknown object
Unknown (not visible)
undefined
unclear
not sure
I'm not sure
no mug
No Mug
no mugs
no red mug
No Red Mug
no object
No object.
no such object
no such thing
no target
no object visible
no person in the video
no sign of a mug
no stop sign
no mug, only a ball
no building
no ring
no face
no exit
there is no mug
There's no mug in the video.
There isn't one
There are none
There are no mugs.
There is nothing on the table
There doesn't seem to be a mug
I don't see any mug.
I do not see a mug in the video
I can't find it
I see no mug
I’m sorry, but I cannot see a mug
Sorry, I don't know.
We couldn't find any
cannot be determined
It can't be determined from the video.
the mug is not visible
The mug isn't visible.
mug not found
The red mug is not present
the mug is no longer visible
It is not in the video
The mug does not appear
the mug doesn't exist
The mug is missing
the red cube is absent
not visible
Not in the image
not present
not there
not a mug
not clearly visible
not specified
The video does not show a mug
This clip doesn't contain any ball
The video contains no mug
the scene has no person
The answer is none
Answer: no mug
object: none
Unable to determine
can't see it
Cannot find the mug
nobody entered
The mug is out of view
the mug is nowhere to be seen
The mug does not appear in the video
""".strip().splitlines()

OBJECTS = """
mug that does not appear broken
glass that cannot be seen through
there are no-entry signs
mug
the mug
Notebook
noodle
nose
nun
nonstick pan
non-stick pan
none-slip mat
None-slip mat
knot
notch
nobody's cup
Nobody's cup
no one's cup
Nothing Phone
nothing phone
Nothing Ear headphones
no parking sign
no loitering sign
no slip mat
cup that is not on the table
mug not in the box
box that is missing
No Parking sign
No Parking Sign
no-parking sign
no entry sign
no smoking sign
No Trespassing sign
no left turn sign
no u-turn sign
no dogs sign
no phones allowed sign
No. 7 ball
no. 7 ball
No.7
No 7 jersey
no #3 car
No Frills bag
no frills bag
No Fear cap
No Name brand can
No Face figurine
No Kidding poster
not-so-large ball
mug, not can
mug without a handle
man with no hat
person in no hurry
cup with nothing in it
cube that is not red
box of unknown origin
unknown soldier statue
missing person poster
absent-minded professor
Dr. No poster
Northern lights
nail
napkin
nacho
iPod
ice cream
island
it
white object
clear glass
notepad on the table
the ball that stopped
""".strip().splitlines()


@pytest.mark.parametrize("answer", NOTHING)
def test_denials(answer):
    assert names_nothing(answer)


@pytest.mark.parametrize("answer", ["", " ", *OBJECTS])
def test_objects(answer):
    assert not names_nothing(answer)

"""The maths of GANs and how they are trained; imports none of the other packages."""

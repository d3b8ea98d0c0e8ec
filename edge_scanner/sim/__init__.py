"""The simulated world: a specimen, its focal surface, the optics that image it and the stage that carries it."""

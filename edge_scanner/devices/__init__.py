"""What a stage, a camera and a light must do (`stage`, `camera`, `illumination`), and checks that prove it (`contract`)."""

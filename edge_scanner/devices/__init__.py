"""What a stage, a camera and a light must do, the clock they share, and checks that prove it (`contract`)."""

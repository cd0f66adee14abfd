"""What an app says of itself: its manifest, in every form that Spin has."""

"""The local emulation behind `roomcast dev`: emulator, stream pump, supervisor, demo page."""

"""Results for people: files of numbers, pictures, one page."""

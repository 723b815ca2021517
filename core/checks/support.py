"""Until when Pythons and Ubuntus are supported. Data only; a release of this package brings it up to date."""

from datetime import date

PYTHON_END_OF_LIFE = {
    "2.7": date(2020, 1, 1),
    "3.0": date(2009, 6, 27),
    "3.1": date(2012, 4, 9),
    "3.2": date(2016, 2, 20),
    "3.3": date(2017, 9, 29),
    "3.4": date(2019, 3, 18),
    "3.5": date(2020, 9, 30),
    "3.6": date(2021, 12, 23),
    "3.7": date(2023, 6, 27),
    "3.8": date(2024, 10, 7),
    "3.9": date(2025, 10, 31),
    "3.10": date(2026, 10, 31),
    "3.11": date(2027, 10, 31),
    "3.12": date(2028, 10, 31),
    "3.13": date(2029, 10, 31),
    "3.14": date(2030, 10, 31),
    "3.15": date(2031, 10, 31),
}
"""Last day of support by minor version, the oldest first. Source: Python Developer's Guide, "Status of Python
versions"; where it names a month only, that month's last day."""

PYTHON_NEAR_END_DAYS = 183
"""So long before its end a Python is no longer a good choice for something new."""

UBUNTU_END_OF_SUPPORT = {
    "16.04": date(2021, 4, 30),
    "18.04": date(2023, 5, 31),
    "20.04": date(2025, 5, 31),
    "22.04": date(2027, 4, 30),
    "24.04": date(2029, 4, 30),
}
"""Last day of standard support of long-term releases. Source: "Ubuntu release cycle", ubuntu.com/about."""

"""One patient under several spellings lies in one part, two patients do not become one by an anonymised tag."""

import logging
import unicodedata

import pytest

from datamodules.records.patients import one_name_per_patient, patient_key


@pytest.mark.parametrize(
    "spellings",
    [
        ("00007", "7", "7.0", "7.", "7,0", "07.00", " 7\t", "\uff17", "'00007", '="00007"', "7\u200b", "7\xa0"),
        ("0", "000", "0.0"),
        ("P007", "p7", "P07 ", "\uff30\uff10\uff10\uff17"),
        ("M\u00fcller  Anna", unicodedata.normalize("NFD", "m\u00fcller anna"), "M\u00dcLLER ANNA"),
    ],
)
def test_spellings_of_one_patient(spellings):
    assert len({patient_key(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    "ids",
    [
        ("7", "70", "700", "7.5", "77", "1007", "-7"),
        ("1", "1,000", "1.000"),  # a thousand
        ("P7", "Q7", "7", "P-7", "P7a"),
        ("1.2.840.10008.7", "1.2.840.10008.70", "1.2.840.10008.7.0", "1.2.840.108.7"),
        ("10", "1", "01a", "0a1"),
    ],
)
def test_ids_of_different_patients(ids):
    assert len({patient_key(one) for one in ids}) == len(ids)


def names(caplog, *images):
    """Return the patient of each (spelling, tag), and what was logged."""
    caplog.set_level(logging.WARNING)
    caplog.clear()
    spellings, tags = zip(*images, strict=True)
    files = [f"{i}.dcm" for i in range(len(images))]
    return one_name_per_patient(spellings, tags, files, "Set"), [record.getMessage() for record in caplog.records]


def test_ids_equal_as_numbers_are_one_patient_with_and_without_a_tag(caplog):
    for tag in ("", "ANON", "00007"):
        found, said = names(caplog, ("7.0", tag), ("00007", tag), ("8", tag.replace("7", "8")), ("7", tag), ("7", tag))
        assert found == ["00007", "00007", "8", "00007", "00007"]
        assert len(said) == 1 and "1 patients are spelled in several ways" in said[0]
        assert "the patient of 0.dcm and 1.dcm and 3.dcm;" in said[0]


def test_one_tag_of_two_ids_makes_them_one_patient(caplog):
    found, said = names(caplog, ("Ada", "007"), ("Bo", "8"), ("Ada L.", "7"), ("Cy", "9"), ("Ada", "7"))
    assert found == ["Ada", "Bo", "Ada", "Cy", "Ada"]
    assert len(said) == 1 and "the patient of 0.dcm and 2.dcm;" in said[0]


@pytest.mark.parametrize("tag", ["P1", "ANON", "0000", ""])
def test_a_tag_that_all_files_have_joins_nobody(caplog, tag):
    found, said = names(caplog, ("A", tag), ("B", tag), ("A", tag))
    assert found == ["A", "B", "A"]
    assert len(said) == (tag == "P1") and all("3 files share their DICOM tag PatientID" in text for text in said)


def test_a_tag_of_many_ids_is_anonymised_and_joins_nobody(caplog):
    images = [(f"A{i}", "ID1") for i in range(1, 5)] + [("B", "2"), ("C", "3"), ("c", "4")]
    found, said = names(caplog, *images)
    assert found == ["A1", "A2", "A3", "A4", "B", "C", "C"]
    assert "4 files share their DICOM tag PatientID with files of other patients, e.g. 0.dcm" in said[1]
    assert len(said) == 2 and "the patient of 5.dcm and 6.dcm;" in said[0]


def test_tags_that_number_the_studies_of_each_patient_do_not_chain_all_into_one(caplog):
    images = [(f"A{i + j}", str(i)) for i in range(1, 9) for j in (0, 1)]
    found, said = names(caplog, *images)
    assert found == [spelling for spelling, _ in images]
    assert len(said) == 1 and "16 files share" in said[0]


def test_what_is_right_is_left_alone(caplog):
    images = [("P_00016", "Mass-Test_P_00016_LEFT_CC"), ("P_00016", "Mass-Test_P_00016_LEFT_MLO"), ("P_00116", "5")]
    assert names(caplog, *images) == (["P_00016", "P_00016", "P_00116"], [])


def test_ids_that_a_spreadsheet_has_rounded_are_told(caplog):
    found, said = names(caplog, ("1.23457E+11", ""), ("123456789012", ""), ("1,2E+12", ""), ("2e+5", ""), ("1e5a", ""))
    assert found == ["1.23457E+11", "123456789012", "1,2E+12", "2e+5", "1e5a"]
    assert len(said) == 1 and "patients of 2 files are numbers that a spreadsheet has rounded" in said[0]
    assert "that of 0.dcm:" in said[0]

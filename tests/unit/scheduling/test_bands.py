from headwater.money import STANDARD
from headwater.scheduling.bands import ANSWERED_TIERS, PRICED_TIERS, TIERS, Band, band_of_record


def test_every_band_has_its_names_and_a_record_leads_back_to_it() -> None:
    assert set(ANSWERED_TIERS) == set(PRICED_TIERS) == set(TIERS.values()) == set(Band)
    assert [band_of_record(PRICED_TIERS[band]) for band in Band] == list(Band)
    assert all(TIERS[tier] is band for band, tier in ANSWERED_TIERS.items())
    assert PRICED_TIERS[Band.STANDARD] == STANDARD
    assert band_of_record("batch") is Band.BATCH

//! Days as dates, for every text that has a date in it: logs, HTTP and reports.
//!
//! Called by the server and by the tools. Knows no clock and no time zone.

/// Year, month and day, both from 1, of a day since 1970-01-01 (proleptic Gregorian). Years are
/// counted from March, so that a leap day ends one, in cycles of 400 years.
#[must_use]
pub fn date_of(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_CYCLE: u64 = 146_097;
    // From March 1 of the year 0.
    let days = days + 719_468;
    let (cycle, day) = (days / DAYS_PER_CYCLE, days % DAYS_PER_CYCLE);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    // Months 10 and 11 from March are those of the next year.
    let (month, turned) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + turned, month, day)
}

/// The day since 1970-01-01, negative before it, of a year and of a month and day from 1. A day
/// that the month does not have is one of the next month.
#[must_use]
pub fn days_of(year: i64, month: i64, day: i64) -> i64 {
    // Years start in March here, so that the leap day is their last.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates_also_around_leap_days() {
        assert_eq!(date_of(0), (1970, 1, 1));
        assert_eq!(date_of(11_016), (2000, 2, 29));
        assert_eq!(date_of(11_017), (2000, 3, 1));
        assert_eq!(date_of(20_453), (2025, 12, 31));
        assert_eq!(date_of(20_454), (2026, 1, 1));
    }

    #[test]
    fn dates_are_days_again() {
        for day in (0..200_000).step_by(97) {
            let (year, month, of_month) = date_of(day);
            let [year, month, of_month] = [year, month, of_month].map(u64::cast_signed);
            assert_eq!(days_of(year, month, of_month), day.cast_signed());
        }
        assert_eq!(days_of(1969, 12, 31), -1);
        assert_eq!(days_of(1950, 1, 1), -7305);
    }
}

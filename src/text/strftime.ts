// Python's strftime in the C locale, in local time, for the date that chat templates write. Knows nothing of templates.

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
  ...["January", "February", "March", "April", "May", "June", "July"],
  ...["August", "September", "October", "November", "December"],
];

/** Unknown directives are left as they are. `%-d` is `%d` without padding. */
export function strftime(date: Date, format: string): string {
  return format.replace(/%(-?)([A-Za-z%])/g, (whole, bare: string, directive: string) => {
    const pad = (value: number, width = 2, fill = "0") => (bare ? String(value) : String(value).padStart(width, fill));
    const [year, month, day, hour] = [date.getFullYear(), date.getMonth(), date.getDate(), date.getHours()];
    const shift = -date.getTimezoneOffset();
    switch (directive) {
      case "Y":
        return String(year);
      case "y":
        return pad(year % 100);
      case "m":
        return pad(month + 1);
      case "d":
        return pad(day);
      case "e":
        return pad(day, 2, " ");
      case "H":
        return pad(hour);
      case "I":
        return pad(hour % 12 || 12);
      case "M":
        return pad(date.getMinutes());
      case "S":
        return pad(date.getSeconds());
      case "f":
        return String(date.getMilliseconds() * 1000).padStart(6, "0");
      case "p":
        return hour < 12 ? "AM" : "PM";
      case "A":
        return DAYS[date.getDay()];
      case "a":
        return DAYS[date.getDay()].slice(0, 3);
      case "B":
        return MONTHS[month];
      case "b":
      case "h":
        return MONTHS[month].slice(0, 3);
      case "j":
        return pad(Math.round((Date.UTC(year, month, day) - Date.UTC(year, 0, 0)) / 86_400_000), 3);
      case "w":
        return String(date.getDay());
      case "u":
        return String(date.getDay() || 7);
      case "F":
        return strftime(date, "%Y-%m-%d");
      case "T":
        return strftime(date, "%H:%M:%S");
      case "R":
        return strftime(date, "%H:%M");
      case "D":
        return strftime(date, "%m/%d/%y");
      case "c":
        return strftime(date, "%a %b %e %H:%M:%S %Y");
      case "x":
        return strftime(date, "%m/%d/%y");
      case "X":
        return strftime(date, "%H:%M:%S");
      case "s":
        return String(Math.floor(date.getTime() / 1000));
      case "z":
        return `${shift < 0 ? "-" : "+"}${pad(Math.floor(Math.abs(shift) / 60))}${pad(Math.abs(shift) % 60)}`;
      case "%":
        return "%";
      default:
        return whole;
    }
  });
}

//! What was said of VMs whose class is known: a table, its figure, and its picture.

use std::collections::BTreeMap;
use std::fmt::Write;
use tiering_user::config::Class;

const CELL: usize = 64;
const LEFT: usize = 110;
const TOP: usize = 60;

/// How often it was said of a class that it is that one; none is unknown.
#[derive(Default)]
pub struct Confusion(BTreeMap<(&'static str, &'static str), usize>);

impl FromIterator<(Class, Option<Class>)> for Confusion {
    fn from_iter<I: IntoIterator<Item = (Class, Option<Class>)>>(said: I) -> Self {
        let mut confusion = Self::default();
        for (is, said) in said {
            *confusion.0.entry((is.name(), said.map_or("unknown", Class::name))).or_default() += 1;
        }
        confusion
    }
}

impl Confusion {
    fn sum(&self, which: impl Fn(&str, &str) -> bool) -> usize {
        self.0.iter().filter(|((is, said), _)| which(is, said)).map(|(_, count)| count).sum()
    }

    fn classes(&self) -> Vec<&'static str> {
        let mut classes: Vec<_> = self.0.keys().map(|(is, _)| *is).collect();
        classes.dedup();
        classes
    }

    /// The mean over classes of the harmonic mean of precision and recall. What is unknown was not found.
    pub fn macro_f1(&self) -> f64 {
        let f1 = |class: &str| {
            let right = self.sum(|is, said| is == class && said == class);
            let (there, said) = (self.sum(|is, _| is == class), self.sum(|_, said| said == class));
            2.0 * right as f64 / (there + said).max(1) as f64
        };
        let classes = self.classes();
        classes.iter().map(|class| f1(class)).sum::<f64>() / classes.len().max(1) as f64
    }

    /// Share of what is not said to be unknown that is right.
    pub fn precision(&self) -> f64 {
        self.sum(|is, said| is == said) as f64 / self.sum(|_, said| said != "unknown").max(1) as f64
    }

    /// Share that is said to be unknown.
    pub fn unknown(&self) -> f64 {
        self.sum(|_, said| said == "unknown") as f64 / self.sum(|_, _| true).max(1) as f64
    }

    /// A row for each class, a column for what was said of it, in percent of the row.
    pub fn svg(&self) -> String {
        let classes = self.classes();
        let columns: Vec<_> = classes.iter().copied().chain(["unknown"]).collect();
        let (width, height) = (LEFT + columns.len() * CELL + 10, TOP + classes.len() * CELL + 10);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"{}\" y=\"18\" text-anchor=\"middle\">said to be</text>\n",
            LEFT + columns.len() * CELL / 2
        );
        let mut text = |x: usize, y: usize, anchor: &str, colour: &str, text: &str| {
            let place = format!("x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" fill=\"{colour}\"");
            writeln!(svg, "<text {place}>{text}</text>").ok();
        };
        for (column, said) in columns.iter().enumerate() {
            text(LEFT + column * CELL + CELL / 2, TOP - 10, "middle", "black", said);
        }
        for (row, is) in classes.iter().enumerate() {
            text(LEFT - 10, TOP + row * CELL + CELL / 2 + 4, "end", "black", is);
        }
        for (row, is) in classes.iter().enumerate() {
            let all = self.sum(|other, _| other == *is).max(1);
            for (column, said) in columns.iter().enumerate() {
                let percent =
                    (self.sum(|other, as_what| other == *is && as_what == *said) * 100 + all / 2) / all;
                let (x, y) = (LEFT + column * CELL, TOP + row * CELL);
                let shade = 255 - percent * 2;
                writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" stroke=\"#999\" fill=\"rgb({shade},{shade},255)\"/>"
                )
                .ok();
                let colour = if percent > 50 { "white" } else { "black" };
                let (x, y) = (x + CELL / 2, y + CELL / 2 + 4);
                writeln!(
                    svg,
                    "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" fill=\"{colour}\">{percent}</text>"
                )
                .ok();
            }
        }
        svg + "</svg>\n"
    }
}

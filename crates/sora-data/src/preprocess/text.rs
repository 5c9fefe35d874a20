//! The text form of a [`Preprocess`]: `key=value` pairs on one line.

use std::fmt;
use std::str::FromStr;

use super::{Preprocess, Resize, Size, usage};
use crate::DataError;

/// The largest height or width: larger ones are typing errors or attacks.
pub(super) const MAX_EXTENT: usize = 1 << 14;

pub(super) const KEYS: [&str; 11] =
    ["shape", "color", "resize", "filter", "crop", "scale", "mean", "std", "layout", "sound", "dtype"];

/// Declares an enum whose variants are words, with its `Display`, `FromStr` and serde forms.
macro_rules! keywords {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$inner])* #[serde(rename = $word)] $variant,)*
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $($name::$variant => $word,)* })
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($name::$variant),)*
                    _ => Err(format!("`{text}` is none of {}", [$($word),*].join(", "))),
                }
            }
        }
    };
}
pub(crate) use keywords;

/// A factor, written as a number or as a fraction such as `1/255`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale(pub f32);

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scale(value) = *self;
        let whole = (1.0 / value).round();
        match whole > 1.0 && whole < 1e6 && 1.0 / whole == value {
            true => write!(f, "1/{whole}"),
            false => write!(f, "{value}"),
        }
    }
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value = match text.split_once('/') {
            Some((above, below)) => real(above)? / real(below)?,
            None => real(text)?,
        };
        match value.is_finite() {
            true => Ok(Scale(value)),
            false => Err(format!("`{text}` is not a finite number")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (height, width) = text.split_once('x').unwrap_or((text, text));
        Ok(Size { height: extent(height)?, width: extent(width)? })
    }
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resize::Shorter(length) => write!(f, "{length}"),
            Resize::Exact(size) => write!(f, "{size}"),
        }
    }
}

impl FromStr for Resize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains('x') {
            true => text.parse().map(Resize::Exact),
            false => extent(text).map(Resize::Shorter),
        }
    }
}

impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = self.shape.as_ref().map(|v| join(v, "x"));
        let fields: [Option<String>; KEYS.len()] = [
            shape,
            self.color.map(|v| v.to_string()),
            self.resize.map(|v| v.to_string()),
            self.filter.map(|v| v.to_string()),
            self.crop.map(|v| v.to_string()),
            self.scale.map(|v| v.to_string()),
            self.mean.as_ref().map(|v| join(v, ":")),
            self.std.as_ref().map(|v| join(v, ":")),
            self.layout.map(|v| v.to_string()),
            self.sound.as_ref().map(|v| v.to_string()),
            self.dtype.map(|v| v.to_string()),
        ];
        let given = KEYS.iter().zip(fields).filter_map(|(key, value)| Some(format!("{key}={}", value?)));
        let given: Vec<String> = given.collect();
        f.write_str(if given.is_empty() { "none".to_owned() } else { given.join(",") }.as_str())
    }
}

impl FromStr for Preprocess {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let mut read = Preprocess::default();
        let pairs = text.split(',').map(str::trim).filter(|p| !p.is_empty() && *p != "none");
        for pair in pairs {
            let keys = || format!("write key=value with the keys {}", KEYS.join(", "));
            let (key, value) =
                pair.split_once('=').ok_or_else(|| usage(format!("`{pair}` is not key=value"), keys()))?;
            let (key, value) = (key.trim(), value.trim());
            let fresh = match key {
                "shape" => set(&mut read.shape, list(value, 'x', extent)),
                "color" => set(&mut read.color, value.parse()),
                "resize" => set(&mut read.resize, value.parse()),
                "filter" => set(&mut read.filter, value.parse()),
                "crop" => set(&mut read.crop, value.parse()),
                "scale" => set(&mut read.scale, value.parse()),
                "mean" => set(&mut read.mean, list(value, ':', real)),
                "std" => set(&mut read.std, list(value, ':', real)),
                "layout" => set(&mut read.layout, value.parse()),
                "sound" => set(&mut read.sound, value.parse()),
                "dtype" => set(&mut read.dtype, value.parse()),
                _ => return Err(usage(format!("the key `{key}` is unknown"), keys())),
            };
            fresh.map_err(|why| usage(format!("the key `{key}` is wrong: {why}"), "correct this key"))?;
        }
        read.validate()?;
        Ok(read)
    }
}

fn set<T>(field: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    match field.replace(value?) {
        None => Ok(()),
        Some(_) => Err("it is given twice".to_owned()),
    }
}

fn list<T>(text: &str, separator: char, item: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(separator).map(item).collect()
}

fn real(text: &str) -> Result<f32, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not a number"))
}

fn extent(text: &str) -> Result<usize, String> {
    let number = text.trim().parse().ok().filter(|n| (1..=MAX_EXTENT).contains(n));
    number.ok_or_else(|| format!("`{text}` is not a number from 1 to {MAX_EXTENT}"))
}

fn join<T: fmt::Display>(values: &[T], separator: &str) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(separator)
}

/// Serde form of fields that are texts in files too; plain numbers are accepted as well.
pub(super) mod form {
    use std::fmt::{self, Display};
    use std::marker::PhantomData;
    use std::str::FromStr;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(in super::super) fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        deserializer.deserialize_any(Text(PhantomData)).map(Some)
    }

    struct Text<T>(PhantomData<T>);

    impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number, or a text such as \"224x224\" or \"1/255\"")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Color, Filter, Layout, Output};
    use super::*;

    #[test]
    fn the_imagenet_line_is_understood() {
        let text = "resize=256,crop=224,layout=nchw,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,scale=1/255";
        let read: Preprocess = text.parse().unwrap();
        assert_eq!(read.resize, Some(Resize::Shorter(256)));
        assert_eq!(read.crop, Some(Size { height: 224, width: 224 }));
        assert_eq!(read.scale, Some(Scale(1.0 / 255.0)));
        assert_eq!(read.mean, Some(vec![0.485, 0.456, 0.406]));
        assert_eq!(read.layout, Some(Layout::Nchw));
    }

    #[test]
    fn every_form_comes_back() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let mut size = || Size { height: rng.usize(1..500), width: rng.usize(1..500) };
            let (crop, exact) = (size(), size());
            let mut maybe = |value: Preprocess| if rng.bool() { value } else { Preprocess::default() };
            let none = Preprocess::default;
            let full = Preprocess {
                shape: maybe(Preprocess { shape: Some(vec![28, 28, 1]), ..none() }).shape,
                color: maybe(Preprocess { color: Some(Color::Bgr), ..none() }).color,
                resize: maybe(Preprocess { resize: Some(Resize::Exact(exact)), ..none() }).resize,
                filter: maybe(Preprocess { filter: Some(Filter::Area), ..none() }).filter,
                crop: maybe(Preprocess { crop: Some(crop), ..none() }).crop,
                scale: maybe(Preprocess { scale: Some(Scale(1.0 / exact.width as f32)), ..none() }).scale,
                mean: maybe(Preprocess { mean: Some(vec![0.485, -1e-7, 3e20]), ..none() }).mean,
                std: maybe(Preprocess { std: Some(vec![0.1]), ..none() }).std,
                layout: maybe(Preprocess { layout: Some(Layout::Flat), ..none() }).layout,
                sound: maybe(Preprocess { sound: "mfcc:mels=20:low=125.5".parse().ok(), ..none() }).sound,
                dtype: maybe(Preprocess { dtype: Some(Output::Stored), ..none() }).dtype,
            };
            assert_eq!(full.to_string().parse::<Preprocess>().unwrap(), full, "{full}");
            let toml = toml::to_string(&full).unwrap();
            assert_eq!(toml::from_str::<Preprocess>(&toml).unwrap(), full, "{toml}");
            let json = serde_json::to_string(&full).unwrap();
            assert_eq!(serde_json::from_str::<Preprocess>(&json).unwrap(), full, "{json}");
        }
    }

    #[test]
    fn wrong_texts_name_the_key() {
        for (text, part) in [
            ("size=3", "`size`"),
            ("resize", "`resize`"),
            ("resize=0", "`resize`"),
            ("resize=99999", "`resize`"),
            ("crop=3x", "`crop`"),
            ("scale=1/0", "`scale`"),
            ("mean=1:a", "`mean`"),
            ("std=0", "std is zero"),
            ("layout=chw", "nchw"),
            ("sound=mfc", "`mfcc`"),
            ("color=rgb,color=rgb", "twice"),
        ] {
            let error = text.parse::<Preprocess>().unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        assert!(toml::from_str::<Preprocess>("size = 3").is_err());
        assert!(toml::from_str::<Preprocess>("crop = -3").is_err());
        assert_eq!(
            toml::from_str::<Preprocess>("crop = 224\nscale = 0.5").unwrap(),
            "crop=224,scale=0.5".parse().unwrap()
        );
        assert_eq!("none".parse::<Preprocess>().unwrap(), Preprocess::default());
    }
}
